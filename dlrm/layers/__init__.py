"""Layers of the dense part, each usable by itself: they know tensors only."""
