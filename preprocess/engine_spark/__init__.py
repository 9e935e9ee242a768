"""The engine for Spark, local or on a cluster; no row passes through Python."""
