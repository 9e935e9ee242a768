"""Programs that replace others in these tests."""
