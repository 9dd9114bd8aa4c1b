-- What a new Postgres gets on its first start: a role and a database for each service, none of which sees another's.
-- The passwords come from the environment and stand on no command line.
\getenv airflow_password AIRFLOW_DB_PASSWORD
\getenv celery_password CELERY_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE celery LOGIN PASSWORD :'celery_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE celery OWNER celery;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE postgres, airflow, celery, mlflow FROM PUBLIC;
