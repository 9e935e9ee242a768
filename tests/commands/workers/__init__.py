"""Programs that stand in for others in these tests."""
