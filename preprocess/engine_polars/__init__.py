"""Ingest on one machine: Polars parses, NumPy numbers; memory grows with the distinct values."""
