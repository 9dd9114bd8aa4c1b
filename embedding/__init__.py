"""The pinlake library: plain Python over Arrow, NumPy, torch and FAISS. It never imports airflow, pyspark, dags or jobs."""
