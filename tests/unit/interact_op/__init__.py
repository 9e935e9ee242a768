"""Tests of interact_op."""
