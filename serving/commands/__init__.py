"""The commands of `python3 -m serving`, one module each: flags in, calls out."""
