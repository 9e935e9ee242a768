"""Programs that the fault suite starts."""
