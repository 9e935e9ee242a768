"""The stream of requests on disk, and batches of it."""
