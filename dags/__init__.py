"""Orchestration only: when each Spark program runs, in which order, with which arguments. One file a DAG."""
