"""The engine for one machine: Polars parses text, and NumPy assigns the ids."""
