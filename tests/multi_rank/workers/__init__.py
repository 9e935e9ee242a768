"""Programs that tests start as ranks of their own."""
