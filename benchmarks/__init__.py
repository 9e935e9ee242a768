"""Measures what benchmarks/README.md states: each module is a command, `-m benchmarks.NAME`."""
