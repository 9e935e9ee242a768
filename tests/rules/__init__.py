"""Rules that the source itself must keep."""
