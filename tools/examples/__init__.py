"""Worked examples: logs of three shapes, made here, each trained and scored with one command.

`logs` makes a log whose best possible AUC is known, `__main__` prepares it, trains on it and
compares.
"""
