"""Turns raw click logs into record files, and generates synthetic logs."""
