"""Tests of one module each, within one process; they take seconds."""
