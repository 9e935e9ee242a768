"""Is the data what was written? Sizes, checksums, labels, dense values and ids of data folders.

One code for `python3 -m preprocess.verify` and for `--verify_data` before training. `folders` finds
the files, `contents` reads them, `counting` counts ids. Nothing here prints or knows of flags,
ranks' exchanges or TensorFlow.
"""

from __future__ import annotations

from dlrm.data.verify.count_ids import IdCounts
from dlrm.data.verify.find_files import Part
from dlrm.data.verify.report import LEVELS, Report, verify

__all__ = ["LEVELS", "IdCounts", "Part", "Report", "verify"]
