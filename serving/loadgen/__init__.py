"""MLPerf's load generator on a scorer: samples, batches, settings, and the reading of its logs.

`mlperf_loadgen` is imported by `settings` alone; the rest works without it.
"""
