"""Writes DLRMv3's streaming data: the generative process, and shards that need no other."""
