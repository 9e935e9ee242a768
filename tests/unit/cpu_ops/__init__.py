"""Tests of `dlrm.cpu_ops`."""
