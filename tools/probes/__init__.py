"""Programs that each ask one library what it offers; tools.doctor runs them, each in a process."""
