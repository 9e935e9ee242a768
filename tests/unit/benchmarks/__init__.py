"""Tests of what the studies in `benchmarks/` count and keep."""
