"""The fault suite: what a run promises for each fault."""
