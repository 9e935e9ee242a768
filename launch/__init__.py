"""Starts a training on several ranks, and restarts it from its last checkpoint if it fails."""
