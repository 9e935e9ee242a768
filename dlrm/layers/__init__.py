"""Layers of the dense part, each usable on its own, independent of tables, ranks and training."""
