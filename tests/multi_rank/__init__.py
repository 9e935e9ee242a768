"""Tests of several ranks together."""
