"""Checks data folders: sizes, checksums, labels, dense values and ids.

The same code serves `python3 -m preprocess.verify` and `--verify_data`. `find_files` finds the
files, `check_values` reads them, `count_ids` counts ids, `report` combines the results. Nothing
here prints, or depends on flags, communication between ranks or TensorFlow.
"""

from __future__ import annotations

from dlrm.data.verify.count_ids import IdCounts
from dlrm.data.verify.find_files import DataPart
from dlrm.data.verify.report import LEVELS, DataReport, check_data

__all__ = ["LEVELS", "IdCounts", "DataPart", "DataReport", "check_data"]
