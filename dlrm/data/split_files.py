"""A folder that `split_bin.py` wrote: `label.bin`, `dense.bin`, `category.bin`, `metadata.json`.

The ids of `category.bin` stand one a word, or packed as `metadata.json` says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm.data.batch import Samples
from dlrm.data.decode import read_dense, read_labels, read_packed_ids
from dlrm.formats import file_names
from dlrm.formats.column_file import ColumnFile, check_range
from dlrm.formats.file_names import StrPath
from dlrm.formats.metadata import read_metadata


class SplitSource:
    """Samples of a split folder.

    Attributes:
        num_samples: Samples in the folder.
        num_dense: Dense columns.
        vocab_sizes: Rows of each table.
    """

    def __init__(self, folder: StrPath) -> None:
        """Opens the folder's files and check that they fit each other.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is malformed, truncated or does not fit the others.
        """
        folder = Path(folder)
        description = read_metadata(folder)
        if description.category_raw_type != "int32":
            raise ValueError(
                f"{folder / file_names.METADATA}: category_raw_type: expected int32, found "
                f"{description.category_raw_type}, which cannot tell ids beyond 2**24 apart; "
                "store ids as int32"
            )
        self.num_dense = description.num_dense
        self.vocab_sizes = description.vocab_sizes
        self._labels = ColumnFile(folder / file_names.LABEL, description.label_raw_type, 1)
        self.num_samples = self._labels.rows
        self._dense = ColumnFile(
            folder / file_names.DENSE, description.dense_raw_type, self.num_dense, self.num_samples
        )
        self._ids = ColumnFile(
            folder / file_names.CATEGORY, "int32", description.category_width, self.num_samples
        )
        self._packing = description.packed_ids
        self._log_offset = description.dense_log_offset if description.dense_log else None

    @property
    def fingerprint(self) -> str:
        """Of all files; see `Source`."""
        files = (self._labels, self._dense, self._ids)
        return " ".join([*(file.fingerprint for file in files), f"log:{self._log_offset}"])

    def read(self, start: int, stop: int) -> Samples:
        """Samples [start, stop); see `Source`.

        Raises:
            ValueError: A label or dense value is bad, or a file was cut while open.
        """
        check_range(start, stop, self.num_samples)
        if self._packing is None:
            ids = self._ids.read(start, stop).astype(np.int32, copy=False)
        else:
            ids = read_packed_ids(self._ids, start, stop, self._packing)
        labels = read_labels(self._labels, start, stop)
        return read_dense(self._dense, start, stop, self._log_offset), ids, labels
