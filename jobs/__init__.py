"""Spark programs, one a file, for `spark-submit` on any master. They call the library and are imported by nothing."""
