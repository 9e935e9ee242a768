"""The records of a record file: their columns, types and the checks on their values.

A record is the label, then the dense columns, then the ids, four bytes each, little-endian. The
flags that describe records are in `split_bin.py`; `dlrm.data.split` writes the columns to files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import file_names, metadata
from dlrm.formats.json_files import read_json_object

VALUE_BYTES = 4

# The shape of the SOK benchmark's record files, for a file without a description.
DEFAULT_NUM_DENSE = 13
DEFAULT_NUM_CATEGORICAL = 26

# Number of rows that are joined into one before a maximum by column: NumPy reduces a few long rows
# many times faster than many short ones.
_FOLD = 32

IntArray = NDArray[np.int32]
# The record within the block, its column, and what is wrong with it.
_Fault = Optional[tuple[int, int, str]]


@dataclass(frozen=True)
class RecordLayout:
    """The columns of a record file.

    Attributes:
        num_dense: Number of dense columns.
        num_categorical: Number of categorical columns.
        vocab_sizes: Number of rows of each table; None to take them from the largest ids in the
            file.
        label_type: The type of labels, `int32` or `float32`.
        dense_type: The type of dense values, `int32` or `float32`.
        dense_log: Whether the loader will replace a dense x by ln(x + dense_log_offset).
        dense_log_offset: The number that the loader will add before the logarithm.
    """

    num_dense: int
    num_categorical: int
    vocab_sizes: tuple[int, ...] | None = None
    label_type: str = "int32"
    dense_type: str = "int32"
    dense_log: bool = True
    dense_log_offset: float = metadata.DEFAULT_DENSE_LOG_OFFSET

    def __post_init__(self) -> None:
        metadata.check_num_dense(self.num_dense)
        if self.num_categorical < 1:
            raise ValueError(
                f"num_categorical: expected a positive integer, found {self.num_categorical}"
            )
        if self.vocab_sizes is not None:
            metadata.check_vocab_sizes(self.vocab_sizes)
            if len(self.vocab_sizes) != self.num_categorical:
                raise ValueError(
                    f"expected {self.num_categorical} vocabulary sizes, one per categorical "
                    f"column, found {len(self.vocab_sizes)}; make --slot_size_array and "
                    "--num_categorical agree"
                )
        metadata.check_log_offset(self.dense_log_offset)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return VALUE_BYTES * (1 + self.num_dense + self.num_categorical)


def read_record_description(record_file: Path) -> dict[str, Any] | None:
    """Reads and checks the `records.json` in the folder of a record file; None if there is none.

    Raises:
        ValueError: The description is malformed, or its number of samples is not that of the file.
    """
    path = record_file.parent / file_names.RECORDS
    if not path.exists():
        return None
    remedy = "run the preprocessing again, or remove the file and describe the records by flags"
    content = read_json_object(path, remedy)
    try:
        for key, check in (
            ("num_dense", metadata.check_num_dense),
            ("vocab_sizes", metadata.check_vocab_sizes),
            ("dense_log_offset", metadata.check_log_offset),
        ):
            if key not in content:
                raise ValueError(f"missing {key}")
            check(content[key])
        width = VALUE_BYTES * (1 + content["num_dense"] + len(content["vocab_sizes"]))
        samples = content.get(record_file.name.split(file_names.RECORD_FILE_SUFFIX)[0] + "_samples")
        size = record_file.stat().st_size
        if samples is not None and size != samples * width:
            raise ValueError(
                f"{record_file.name}: expected {samples} records of {width} bytes = "
                f"{samples * width} bytes, found {size} bytes"
            )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    return content


class RecordChecker:
    """Checks blocks of records and remembers the largest id of each categorical column.

    Args:
        file: The record file, for error messages.
        layout: The columns of a record.
    """

    def __init__(self, file: Path, layout: RecordLayout) -> None:
        self._file = file
        self._layout = layout
        self._max_ids = np.zeros(layout.num_categorical, np.uint32)
        limits = layout.vocab_sizes or (metadata.MAX_VOCAB_SIZE,) * layout.num_categorical
        self._limits = np.array(limits, np.uint32)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """The given vocabulary sizes, or the largest id seen plus one."""
        if self._layout.vocab_sizes is not None:
            return self._layout.vocab_sizes
        return tuple(int(largest) + 1 for largest in self._max_ids)

    def check(self, first_record: int, labels: IntArray, dense: IntArray, ids: IntArray) -> None:
        """Checks one block, given as C-contiguous arrays of its four-byte columns.

        Args:
            first_record: Position in the file of the block's first record.
            labels: The raw labels, [records].
            dense: The raw dense values, [records, num_dense].
            ids: The raw ids, [records, num_categorical].

        Raises:
            ValueError: A record is bad; the message names the first one, its column and value.
        """
        # As unsigned numbers, negative ids exceed every vocabulary, so one maximum checks both
        # ends.
        largest = _max_by_column(ids.view(np.uint32))
        np.maximum(self._max_ids, largest, out=self._max_ids)
        if (
            self._labels_good(labels)
            and self._dense_good(dense)
            and not (largest >= self._limits).any()
        ):
            return
        finders: tuple[Callable[[], _Fault], ...] = (
            lambda: self._find_bad_label(labels),
            lambda: self._find_bad_dense(dense),
            lambda: self._find_bad_id(ids),
        )
        faults = [fault for fault in (find() for find in finders) if fault is not None]
        record, _, what = min(faults, key=lambda fault: fault[0])
        raise ValueError(f"{self._file}: record {first_record + record}, {what}")

    def _labels_good(self, labels: IntArray) -> bool:
        if self._layout.label_type == "int32":
            return bool(labels.view(np.uint32).max() <= 1)
        values = labels.view(np.float32)
        return bool(((values == 0) | (values == 1)).all())

    def _dense_good(self, dense: IntArray) -> bool:
        offset = self._layout.dense_log_offset
        if self._layout.dense_type == "int32":
            return not self._layout.dense_log or bool(dense.min() > -offset)
        values = dense.view(np.float32)
        # A single NaN makes both extremes NaN, and every comparison with NaN is false.
        lowest, highest = values.min(), values.max()
        floor = -offset if self._layout.dense_log else -np.inf
        return bool(lowest > floor and highest < np.inf)

    def _find_bad_label(self, labels: IntArray) -> _Fault:
        values = labels.view(self._layout.label_type)
        bad = np.flatnonzero((values != 0) & (values != 1))
        if not bad.size:
            return None
        record = int(bad[0])
        return record, 0, f"label: expected 0 or 1, found {values[record]}; clean the input"

    def _find_bad_dense(self, dense: IntArray) -> _Fault:
        values = dense.view(self._layout.dense_type)
        offset = self._layout.dense_log_offset
        bad = ~np.isfinite(values)
        if self._layout.dense_log:
            bad |= ~(values > -offset)
        if not bad.any():
            return None
        record, column = (int(index) for index in np.argwhere(bad)[0])
        value = values[record, column]
        if np.isfinite(value):
            what = f"ln({value} + {offset:g}) is not finite; raise --dense_log_offset or clean"
        else:
            what = f"expected a finite value, found {value}; clean"
        return record, column, f"dense column {column}: {what} the input"

    def _find_bad_id(self, ids: IntArray) -> _Fault:
        bad = ids.view(np.uint32) >= self._limits
        if not bad.any():
            return None
        record, column = (int(index) for index in np.argwhere(bad)[0])
        value = ids[record, column]
        if self._layout.vocab_sizes is None:
            what = f"id {value} is negative; clean the input"
        else:
            size = self._layout.vocab_sizes[column]
            what = f"id {value} is outside [0, {size}); correct --slot_size_array or the input"
        return record, column, f"categorical column {column}: {what}"


def _max_by_column(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The largest value of each column of [rows, columns]; 0 if there are no rows."""
    rows, columns = values.shape
    folded = rows - rows % _FOLD
    largest = np.zeros(columns, np.uint32)
    if folded:
        long_rows = values[:folded].reshape(folded // _FOLD, _FOLD * columns)
        np.max(long_rows.max(axis=0).reshape(_FOLD, columns), axis=0, out=largest)
    if folded < rows:
        np.maximum(largest, values[folded:].max(axis=0), out=largest)
    return largest
