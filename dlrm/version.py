"""The version of the project, in one place. It imports nothing, so that packaging can read it."""

__version__ = "0.1.0"
