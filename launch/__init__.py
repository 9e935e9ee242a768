"""Starts a training over several ranks and restarts it from its last checkpoint."""
