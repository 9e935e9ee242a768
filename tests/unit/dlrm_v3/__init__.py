"""Tests of DLRMv3."""
