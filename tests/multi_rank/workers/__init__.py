"""Programs that tests start as ranks."""
