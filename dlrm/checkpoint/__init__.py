"""Checkpoints: the whole state of a run on disk, readable by any number of ranks.

`save.Checkpoints` writes them, `resume.resume` finds and loads the one to go on from. From the
command line, `python3 -m dlrm.checkpoint` lists, checks, exports and imports them.
"""
