"""Reads a file once, block by block: its checksum in one thread, its values in another.

The counts of ids allow no third: two counting threads were no faster than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.data.verify.count_ids import IdCounts, count_ids
from dlrm.data.verify.find_files import (
    DENSE,
    IDS,
    LABEL,
    OFFSETS,
    RECORDS,
    REWRITE,
    WEIGHTS,
    DataFile,
    DataPart,
)
from dlrm.formats.checksums import FileSum, RunningSum

_BLOCK_BYTES = 4 << 20

Values = NDArray[Any]


def check_contents(data: DataFile, part: DataPart, counts: IdCounts | None) -> FileSum:
    """Reads a whole file and adds to the part's faults and positives, and to the counts.

    Args:
        data: The file.
        part: The part that it belongs to.
        counts: Where to count ids; None only checks them.

    Returns:
        The size and checksum of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file was cut after it had been opened.
    """
    checks = _Checks(data, part, counts)
    running = RunningSum()
    file = data.file
    rows = max(1, _BLOCK_BYTES // file.row_bytes)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as summer:
        for start in range(0, file.rows, rows):
            block = file.read(start, min(start + rows, file.rows))
            summing = summer.submit(running.update, block.reshape(-1).view(np.uint8).data)
            checks.add(start, block)
            summing.result()
    part.faults += checks.faults
    if data.content in (LABEL, RECORDS):
        part.positives = checks.positives
    return running.value


class _Checks:
    """The faults of one file: its first bad label, dense value and id, and their numbers."""

    def __init__(self, data: DataFile, part: DataPart, counts: IdCounts | None) -> None:
        self._data = data
        self._part = part
        self._counts = counts
        self._sizes = np.array([part.vocab_sizes[table] for table in data.tables], np.int64)
        self._last_offset = 0
        self._found: dict[str, tuple[str, int]] = {}
        self.positives = 0

    @property
    def faults(self) -> list[str]:
        """One line for each kind of bad value."""
        return [
            f"{self._data.file.path}: {text}; {number} such in all; {REWRITE}"
            for text, number in self._found.values()
        ]

    def add(self, start: int, block: Values) -> None:
        """Checks one block, whose first row is `start`."""
        for content, values in self._columns(block):
            if content == LABEL:
                self._labels(start, values[:, 0])
            elif content == DENSE:
                self._dense(start, values)
            elif content == OFFSETS:
                self._offsets(start, values[:, 0])
            elif content == WEIGHTS:
                self._weights(start, values[:, 0])
            else:
                self._ids(start, values)

    def _columns(self, block: Values) -> Iterator[tuple[str, Values]]:
        """Yields the columns of a block by kind; a block of records has all three kinds."""
        if self._data.content != RECORDS:
            yield self._data.content, block
            return
        first_id = 1 + self._part.num_dense
        yield LABEL, block[:, :1]
        yield DENSE, block[:, 1:first_id]
        yield IDS, block[:, first_id:]

    def _bad(self, what: str, text: str, number: int) -> None:
        """Counts `number` bad values of a kind; the text about the first one is kept."""
        first, before = self._found.get(what, (text, 0))
        self._found[what] = (first, before + number)

    def _labels(self, start: int, labels: Values) -> None:
        """Checks that labels are 0 or 1, and counts the ones."""
        ones = labels == 1
        self.positives += int(np.count_nonzero(ones))
        bad = np.flatnonzero(~(ones | (labels == 0)))
        if bad.size:
            found = f"found {labels[bad[0]]}"
            self._bad(LABEL, f"record {start + bad[0]}: expected label 0 or 1, {found}", bad.size)

    def _dense(self, start: int, dense: Values) -> None:
        """Checks that dense values are finite and above the part's bound."""
        low = self._part.lowest_dense
        good = np.isfinite(dense) if low is None else np.isfinite(dense) & (dense > low)
        if good.all():
            return
        record, column = np.argwhere(~good)[0]
        want = "a finite value" if low is None else f"a finite value above {low:g}"
        self._bad(
            DENSE,
            f"record {start + record}, dense column {column}: expected {want}, found "
            f"{dense[record, column]}",
            int(np.count_nonzero(~good)),
        )

    def _offsets(self, start: int, offsets: Values) -> None:
        """Checks that offsets ascend by no more than a bag may hold."""
        lengths = np.diff(offsets, prepend=self._last_offset)
        self._last_offset = offsets[-1]
        bad = np.flatnonzero((lengths < 0) | (lengths > self._data.max_ids))
        if bad.size:
            self._bad(
                OFFSETS,
                f"sample {start + bad[0] - 1}: expected 0 to {self._data.max_ids} ids (max_ids), "
                f"found {lengths[bad[0]]}",
                bad.size,
            )

    def _weights(self, start: int, weights: Values) -> None:
        """Checks that weights are finite."""
        bad = np.flatnonzero(~np.isfinite(weights))
        if bad.size:
            found = f"found {weights[bad[0]]}"
            self._bad(
                WEIGHTS, f"position {start + bad[0]}: expected a finite weight, {found}", bad.size
            )

    def _ids(self, start: int, stored: Values) -> None:
        """Checks that ids lie within their tables, and counts them if asked to."""
        packing = self._data.packing
        if packing is not None:
            ids = packing.unpack(stored.astype(np.int32, copy=False))
        else:
            ids = np.ascontiguousarray(stored, np.int32)
        outside, position = count_ids(ids, self._sizes, self._counts, self._data.tables)
        if outside:
            record, column = divmod(position, ids.shape[1])
            table = self._data.tables[column]
            size = self._part.vocab_sizes[table]
            row = "position" if self._data.max_ids else "record"
            self._bad(
                IDS,
                f"{row} {start + record}, categorical column {table}: expected an id in "
                f"[0, {size}), found {ids[record, column]}",
                outside,
            )
