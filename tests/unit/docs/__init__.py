"""Tests of the documents in docs/: their examples run, their tables are up to date."""
