"""Writes `tables.safetensors`: the rows of a checkpoint, encoded, in order of key or of use.

Holds a few pieces of the rows, however large the tables are. In order of use it also holds the
order, some bytes a row, but never the rows: the file is divided into stretches of at most 64 MB, or
of 1/256 of it. First each encoded row goes to the stretch in which it will end, where the rows lie
in order of key; then each stretch is put in order on its own, in place.

What the rows are used for, and the other files of an artifact, are not its concern.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.safetensors_file import (
    FileDigest,
    Spec,
    TensorWriter,
    allocate,
    digest_file,
)
from dlrm.formats import atomic_files
from serving.artifact import ROWS, TABLE_SCALES
from serving.row_encoding import FLOAT16, INT8, decode, encode, stored_spec, table_scale
from serving.row_order import RowOrder

STRETCH_BYTES = 64 << 20
_MOST_STRETCHES = 256

Stored = NDArray[Any]


class RowSource(Protocol):
    """The rows of a table, in pieces.

    Attributes:
        rows: Number of rows, at least one.
        width: Number of values in a row.
    """

    rows: int
    width: int

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields pieces in order: the first row of each and its values, float32 [n, width]."""

    def name_of(self, row: int) -> str:
        """What a row is called in a message, such as `id 7`."""


class RowErrors(NamedTuple):
    """What the encoding changed in the values of one table.

    Attributes:
        largest: The largest absolute error of a value.
        mean: The mean absolute error.
        magnitude: The largest magnitude of a value before it.
    """

    largest: float
    mean: float
    magnitude: float


def write_tables(
    sources: Sequence[RowSource], path: Path, tables: str, order: RowOrder | None
) -> tuple[FileDigest, list[RowErrors]]:
    """Writes the rows of all tables.

    With one scale a table, the rows are read twice: for the largest magnitude, and to encode them.

    Args:
        sources: The tables.
        path: The file, which must not exist.
        tables: How rows are stored, one of `TABLE_TYPES`.
        order: The order of the rows; None for the order of keys.

    Returns:
        The digest of the file, and what the encoding cost each table.

    Raises:
        ValueError: A table is damaged, or a value is not finite or does not fit its type.
        OSError: A file cannot be read or written.
    """
    rows = sum(source.rows for source in sources)
    dtype, values = stored_spec(tables, sources[0].width)
    specs: dict[str, Spec] = {ROWS: (dtype, (rows, values))}
    scales = None
    if tables == INT8:
        scales = np.array([table_scale(_largest(source)) for source in sources], "<f4")
        specs[TABLE_SCALES] = (scales.dtype, scales.shape)
    encoder = _Encoder(sources, tables, scales)
    if order is None:
        with TensorWriter(path, specs) as writer:
            for _, stored in encoder:
                writer.write(stored)
            if scales is not None:
                writer.write(scales)
            return writer.finish(), encoder.errors
    start, row_bytes = allocate(path, specs), dtype.itemsize * values
    with open(path, "r+b", buffering=0) as file, atomic_files.naming(path):
        _Stretches(file.fileno(), start, row_bytes, order).write(encoder)
        if scales is not None:
            _write_at(file.fileno(), start + rows * row_bytes, scales)
    return digest_file(path), encoder.errors


def _largest(table: RowSource) -> float:
    """The largest magnitude of a table's values."""
    return max(float(np.abs(rows).max()) for _, rows in table)


class _Encoder:
    """Encodes the rows of all tables in order of key, and measures what that costs.

    Args:
        sources: The tables.
        tables: How rows are stored.
        scales: The scale of each table, float32 [tables]; for int8 alone.

    Attributes:
        errors: The cost of each table that is encoded.
    """

    def __init__(
        self, sources: Sequence[RowSource], tables: str, scales: NDArray[np.float32] | None
    ) -> None:
        self._sources, self._tables, self._scales = sources, tables, scales
        self.errors: list[RowErrors] = []

    def __iter__(self) -> Iterator[tuple[int, Stored]]:
        """Yields pieces in order: the first key of each and its stored rows, [n, values].

        Raises:
            ValueError: A value is not finite or does not fit its type; the message names it.
        """
        first_key = 0
        for number, table in enumerate(self._sources):
            scale = None if self._scales is None else self._scales[number]
            largest = magnitude = total = 0.0
            for first, rows in table:
                scales = None if scale is None else np.full(len(rows), scale)
                where = _Place(number, table, first)
                _check_finite(rows, rows, where, "a finite value")
                stored = encode(self._tables, rows, scales)
                if self._tables == FLOAT16:
                    _check_finite(stored, rows, where, "a magnitude up to 65504")
                yield first_key + first, stored
                magnitude = max(magnitude, float(np.abs(rows).max()))
                if stored is not rows:  # as with float32
                    difference = np.abs(decode(self._tables, stored, scales) - rows)
                    largest = max(largest, float(difference.max()))
                    total += float(difference.sum(dtype=np.float64))
            self.errors.append(RowErrors(largest, total / (table.rows * table.width), magnitude))
            first_key += table.rows


class _Place(NamedTuple):
    """Where a piece of rows is from: the number of its table, the table, and its first row."""

    number: int
    table: RowSource
    first: int


def _check_finite(values: Stored, rows: NDArray[np.float32], where: _Place, expected: str) -> None:
    """Raises the error that names the first value that is not finite."""
    # A sum is finite only if all its terms are; so no array of flags is made.
    if np.isfinite(values.sum(dtype=np.float64)):
        return
    row, column = np.argwhere(~np.isfinite(values))[0]
    name = where.table.name_of(where.first + int(row))
    raise ValueError(
        f"table {where.number}, {name}, value {column}: expected {expected}, found "
        f"{rows[row, column]}; export a checkpoint from before it diverged, or other --tables"
    )


class _Stretches:
    """Puts rows that come in order of key in order of use, in one file that has its size already.

    Args:
        descriptor: The open file.
        start: The offset of the first row.
        row_bytes: Bytes of a row.
        order: The order of the rows.
    """

    def __init__(self, descriptor: int, start: int, row_bytes: int, order: RowOrder) -> None:
        self._descriptor, self._start, self._row_bytes = descriptor, start, row_bytes
        self._order = order
        rows = len(order.keys)
        self._length = max(STRETCH_BYTES // row_bytes, -(-rows // _MOST_STRETCHES), 1)
        self._filled = np.zeros(-(-rows // self._length), np.int64)

    def write(self, pieces: _Encoder) -> None:
        """Writes all rows."""
        for first, stored in pieces:
            self._distribute(first, stored.reshape(len(stored), -1).view(np.uint8))
        for stretch in range(len(self._filled)):
            self._sort(stretch)

    def _distribute(self, first: int, stored: NDArray[np.uint8]) -> None:
        """Appends each row of a piece to its stretch."""
        stretches = self._order.positions[first : first + len(stored)] // self._length
        by_stretch = np.argsort(stretches, kind="stable")
        stored = stored[by_stretch]
        numbers, begins = np.unique(stretches[by_stretch], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(stored, begins[1:])):
            row = number * self._length + int(self._filled[number])
            _write_at(self._descriptor, self._start + row * self._row_bytes, rows)
            self._filled[number] += len(rows)

    def _sort(self, stretch: int) -> None:
        """Puts a stretch, whose rows lie in order of key, in order of use."""
        first = stretch * self._length
        keys = self._order.keys[first : first + self._length]
        offset = self._start + first * self._row_bytes
        by_key = np.empty((len(keys), self._row_bytes), np.uint8)
        _read_at(self._descriptor, offset, by_key)
        by_use = np.empty_like(by_key)
        # The smallest key's row came first, and so on.
        by_use[np.argsort(keys)] = by_key
        _write_at(self._descriptor, offset, by_use)


def _write_at(descriptor: int, offset: int, values: Stored) -> None:
    """Writes a contiguous array."""
    view = values.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def _read_at(descriptor: int, offset: int, out: NDArray[np.uint8]) -> None:
    """Fills a contiguous array from a file that holds enough."""
    view = out.reshape(-1).data
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        assert count, "the file was cut while it was written"
        done += count
