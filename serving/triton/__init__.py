"""Triton's server in front of the scorer: model repository, Python backend, process and client."""
