"""A folder with one file per table: `label.bin`, `dense.bin`, `category_0.bin`, `category_1.bin`...

Labels take one byte. Dense values are float16 and used as they are, without a logarithm. Ids have
the smallest type of int8, int16 and int32 whose largest value exceeds the vocabulary size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm.data.batch import Samples
from dlrm.data.decode import read_dense, read_labels
from dlrm.formats import file_names
from dlrm.formats.column_file import ColumnFile, check_range
from dlrm.formats.file_names import StrPath
from dlrm.formats.metadata import read_per_category_metadata

# Samples in a block: their ids, gathered from all tables' files, stay in the second-level cache.
_BLOCK_SAMPLES = 4096


def id_type(vocab_size: int) -> str:
    """The smallest integer type whose largest value exceeds the vocabulary size.

    Raises:
        ValueError: Even the largest value of int32 does not exceed it.
    """
    for name in ("int8", "int16", "int32"):
        if vocab_size < np.iinfo(name).max:
            return name
    raise ValueError(f"vocab_sizes: expected less than {np.iinfo('int32').max}, found {vocab_size}")


class PerCategorySource:
    """Reads the samples of a per-category folder. Opening it checks that its files fit each other.

    Args:
        folder: The folder to open.

    Attributes:
        num_samples: Number of samples in the folder.
        num_dense: Number of dense columns.
        vocab_sizes: Number of rows of each table.
        bag_layout: None: a folder of this kind has no bags.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, truncated or does not fit the others.
    """

    bag_layout = None

    def __init__(self, folder: StrPath) -> None:
        folder = Path(folder)
        self.vocab_sizes, self.num_dense = read_per_category_metadata(folder)
        self._labels = ColumnFile(folder / file_names.LABEL, "uint8", 1)
        self.num_samples = self._labels.rows
        self._dense = ColumnFile(
            folder / file_names.DENSE, "float16", self.num_dense, self.num_samples
        )
        try:
            types = [id_type(size) for size in self.vocab_sizes]
        except ValueError as error:
            raise ValueError(f"{folder / file_names.METADATA}: {error}; correct the list") from None
        self._ids = [
            ColumnFile(folder / file_names.category_file(table), name, 1, self.num_samples)
            for table, name in enumerate(types)
        ]

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all files together; see `Source`."""
        return " ".join(file.fingerprint for file in (self._labels, self._dense, *self._ids))

    def read(self, start: int, stop: int) -> Samples:
        """Reads samples [start, stop); see `Source`.

        Raises:
            ValueError: A label or dense value is bad, or a file was truncated while open.
        """
        check_range(start, stop, self.num_samples)
        ids = np.empty((stop - start, len(self._ids)), np.int32)
        columns = [file.read(start, stop)[:, 0] for file in self._ids]
        for first in range(0, stop - start, _BLOCK_SAMPLES):
            block = ids[first : first + _BLOCK_SAMPLES]
            for table, column in enumerate(columns):
                block[:, table] = column[first : first + _BLOCK_SAMPLES]
        labels = read_labels(self._labels, start, stop)
        return read_dense(self._dense, start, stop, None), ids, labels
