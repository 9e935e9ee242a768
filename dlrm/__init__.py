"""The internals of the training system. Nothing here imports the modules of the root."""
