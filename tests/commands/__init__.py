"""Tests of the programs as a user starts them."""
