"""A folder that `split_bin.py` wrote: `label.bin`, `dense.bin`, `category.bin`, `metadata.json`.

A word of `category.bin` holds one id, or several, packed as `metadata.json` describes. Tables that
hold bags of ids have files of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm.data.bag_reader import read_bags
from dlrm.data.batch import Ids, IntArray, Samples
from dlrm.data.decode import read_dense, read_labels, read_packed_ids
from dlrm.formats import file_names
from dlrm.formats.bag_files import BagFiles
from dlrm.formats.bags import BagLayout
from dlrm.formats.column_file import ColumnFile, check_range
from dlrm.formats.file_names import StrPath
from dlrm.formats.metadata import read_metadata


class SplitSource:
    """Reads the samples of a split folder. Opening it checks that its files fit each other.

    Args:
        folder: The folder to open.

    Attributes:
        num_samples: Number of samples in the folder.
        num_dense: Number of dense columns.
        vocab_sizes: Number of rows of each table.
        bag_layout: How bags of ids are pooled; None if every table has one id for each sample.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, truncated or does not fit the others.
    """

    def __init__(self, folder: StrPath) -> None:
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
        self._ids = None
        if description.category_width:
            self._ids = ColumnFile(
                folder / file_names.CATEGORY, "int32", description.category_width, self.num_samples
            )
        self._packing = description.packed_ids
        self._single_tables = description.single_tables
        self._bags = [BagFiles(folder, bag, self.num_samples) for bag in description.bags]
        self.bag_layout: BagLayout | None = None
        if self._bags:
            means = [files.total / self.num_samples for files in self._bags]
            self.bag_layout = BagLayout.of(len(self.vocab_sizes), description.bags, means)
        self._log_offset = description.dense_log_offset if description.dense_log else None

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all files together; see `Source`."""
        files = [self._labels, self._dense, *([self._ids] if self._ids else [])]
        parts = [*(file.fingerprint for file in files), f"log:{self._log_offset}"]
        for bags in self._bags:
            parts += [file.fingerprint for file in bags.files]
            parts.append(f"{bags.bag.table}:{bags.bag.pooling}")
        return " ".join(parts)

    def read(self, start: int, stop: int) -> Samples:
        """Reads samples [start, stop); see `Source`.

        Raises:
            ValueError: A label or dense value is bad, or a file was truncated while open.
        """
        ids = self.read_ids(start, stop)
        labels = read_labels(self._labels, start, stop)
        return read_dense(self._dense, start, stop, self._log_offset), ids, labels

    def read_ids(self, start: int, stop: int) -> Ids:
        """Reads the ids of samples [start, stop) alone, int32 [samples, tables], or their bags.

        Raises:
            ValueError: The offsets of bags are wrong, or a file was truncated while open.
        """
        check_range(start, stop, self.num_samples)
        single_ids = self._read_category(start, stop)
        if not self._bags:
            return single_ids
        return read_bags(self._bags, start, stop, self._single_tables, single_ids)

    def _read_category(self, start: int, stop: int) -> IntArray:
        """The ids in `category.bin`, int32 [samples, tables without bags]."""
        if self._ids is None:
            return np.empty((stop - start, 0), np.int32)
        if self._packing is None:
            return self._ids.read(start, stop).astype(np.int32, copy=False)
        return read_packed_ids(self._ids, start, stop, self._packing)
