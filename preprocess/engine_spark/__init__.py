"""Ingest on Spark, local or on a cluster; no row passes through Python."""
