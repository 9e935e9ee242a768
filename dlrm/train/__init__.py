"""One run: how it is put together, its loop, its step and its evaluation; no file formats."""
