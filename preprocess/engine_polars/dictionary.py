"""Numbers the distinct values of a table in order of first appearance, and counts them.

This is a hash table with open addressing. Unlike a join, a lookup costs no more when more values
are known. This module must not know about files or rules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.engine_polars import kernels

UInt32 = NDArray[np.uint32]
Int32 = NDArray[np.int32]

_FIRST_BITS = 10
_NONE_ABSENT = np.zeros(0, np.bool_)


class Dictionary:
    """Maps 32-bit values to provisional ids 0, 1, 2, ... in order of first appearance.

    A slot holds `value << 32 | id + 1` in one 64-bit word, so that one access finds both; 0 marks
    an empty slot. At most half of the slots are used. Each value takes 16 to 32 bytes of slots and
    12 to 24 bytes of values and counts.
    """

    def __init__(self) -> None:
        self._bits = _FIRST_BITS
        self._slots = np.zeros(1 << self._bits, np.uint64)
        self._values = np.empty(1 << (self._bits - 1), np.uint32)
        self._counts = np.zeros(1 << (self._bits - 1), np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> UInt32:
        """Distinct values in order of first appearance, uint32 [values]."""
        return self._values[: self._size]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of times each value was encoded, int64 [values]."""
        return self._counts[: self._size]

    def encode(
        self, values: UInt32, absent: NDArray[np.bool_] | None = None, modulus: int | None = None
    ) -> None:
        """Replaces values by their provisional ids; adds new values and counts all of them.

        Args:
            values: The values, uint32 [rows]; the bits of an int32 id take the place of each.
            absent: Which rows have no value, bool [rows]; they get -1 and are not counted.
            modulus: What values are taken modulo of; None leaves them as they are.
        """
        row = 0
        while True:
            row, self._size = kernels.encode(
                values,
                _NONE_ABSENT if absent is None else absent,
                np.uint32(modulus or 0),
                self._bits,
                self._slots,
                self._values,
                self._counts,
                self._size,
                row,
            )
            if row == len(values):
                return
            self._grow(self._size + 1)

    def extend(self, values: UInt32) -> None:
        """Adds distinct new values in order, without counting them."""
        first = self._size
        self._grow(first + len(values))
        self.encode(values.copy())
        self._counts[first : self._size] = 0

    def count(self, ids: Int32) -> None:
        """Counts rows by their provisional ids, which must exist.

        Args:
            ids: The provisional ids, int32 [rows].
        """
        if 4 * len(ids) >= self._size:
            self._counts[: self._size] += np.bincount(ids, minlength=self._size)
        else:
            np.add.at(self._counts, ids, 1)

    def _grow(self, size: int) -> None:
        """Makes space for `size` values and inserts the present ones again."""
        if 2 * size <= 1 << self._bits:
            return
        values, counts = self.values, self.counts
        while 2 * size > 1 << self._bits:
            self._bits += 1
        half = 1 << (self._bits - 1)
        self._slots = np.zeros(1 << self._bits, np.uint64)
        self._values = np.empty(half, np.uint32)
        self._counts = np.zeros(half, np.int64)
        self._size = 0
        self.encode(values.copy())
        self._counts[: self._size] = counts
