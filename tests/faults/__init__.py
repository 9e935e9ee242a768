"""The fault suite: what a run promises of each fault."""
