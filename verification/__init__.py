"""Is the data what was written? Sizes, checksums, labels, dense values and ids of data folders.

One code for `python3 -m preprocess.verify` and for `--verify_data` before training. `folders` finds
the files, `contents` reads them, `counting` counts ids. Nothing here prints or knows of flags,
ranks' exchanges or TensorFlow.
"""

from __future__ import annotations

from verification.counting import IdCounts
from verification.folders import Part
from verification.verify import LEVELS, Report, verify

__all__ = ["LEVELS", "IdCounts", "Part", "Report", "verify"]
