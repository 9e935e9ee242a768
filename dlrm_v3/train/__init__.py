"""Training of DLRMv3: timestamps in order, each trained on once, after it was predicted."""
