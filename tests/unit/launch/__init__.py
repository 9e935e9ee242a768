"""Tests of launch that start no job."""
