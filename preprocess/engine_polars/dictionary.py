"""Numbers the distinct values of a table in order of first appearance, and counts them.

This is an open-addressing hash table in NumPy. A lookup takes a few passes over the array of values
to look up; unlike a join, its cost does not grow with the number of values already known. This
module must not know about files or rules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt32 = NDArray[np.uint32]
Int32 = NDArray[np.int32]

_MULTIPLIER = np.uint32(0x9E3779B1)
_HIGH = np.uint64(32)
_FIRST_BITS = 10
_LEAST_PIECE = 1024


class Dictionary:
    """Maps 32-bit values to provisional ids 0, 1, 2, ... in order of first appearance.

    A slot holds `value << 32 | id + 1` in one 64-bit word, so that one gather returns both; 0 marks
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

    def encode(self, values: UInt32) -> Int32:
        """Returns the provisional ids of `values`; adds new values and counts all of them.

        Args:
            values: The values, uint32 [rows].

        Returns:
            The provisional ids, int32 [rows].
        """
        ids = self._find(values)
        new = np.flatnonzero(ids < 0)
        while new.size:
            # In growing pieces: space is made for every row of a piece, even for repeated values.
            piece = new[: max(_LEAST_PIECE, self._size)]
            self._add(values[piece])
            ids[new] = self._find(values[new])
            new = new[ids[new] < 0]
        self.count(ids)
        return ids

    def extend(self, values: UInt32) -> None:
        """Adds distinct new values in order, without counting them."""
        self._add(values)

    def count(self, ids: Int32) -> None:
        """Counts rows by their provisional ids, which must exist.

        Args:
            ids: The provisional ids, int32 [rows].
        """
        if 4 * len(ids) >= self._size:
            self._counts[: self._size] += np.bincount(ids, minlength=self._size)
        else:
            np.add.at(self._counts, ids, 1)

    def _home(self, values: UInt32) -> NDArray[np.intp]:
        """Returns the slot at which the search for each value begins, by multiplicative hashing."""
        return ((values * _MULTIPLIER) >> np.uint32(32 - self._bits)).astype(np.intp)

    def _find(self, values: UInt32) -> Int32:
        """Returns the ids of `values`, int32 [rows]; -1 marks absent values."""
        slots = self._home(values)
        words = self._slots.take(slots)
        # The low half of an empty slot is 0, which gives -1.
        ids = words.astype(np.uint32).view(np.int32) - 1
        pending = np.flatnonzero((words != 0) & ((words >> _HIGH) != values))
        mask = len(self._slots) - 1
        slots = slots[pending]
        sought = values[pending]
        while pending.size:
            slots = (slots + 1) & mask
            words = self._slots.take(slots)
            ids[pending] = words.astype(np.uint32).view(np.int32) - 1
            other = (words != 0) & ((words >> _HIGH) != sought)
            pending, slots, sought = pending[other], slots[other], sought[other]
        return ids

    def _add(self, values: UInt32) -> None:
        """Adds new values in order of first appearance; `values` may repeat themselves."""
        if 2 * (self._size + len(values)) > len(self._slots):
            self._grow(self._size + len(values))
        slots = self._insert(values, np.arange(1, len(values) + 1, dtype=np.uint64))
        # The slot of each value now holds the row of its first appearance, which gives the order.
        words = self._slots.take(slots)
        rows = np.arange(1, len(values) + 1, dtype=np.uint32)
        first = np.flatnonzero(words.astype(np.uint32) == rows)
        size = self._size + len(first)
        self._slots[slots[first]] = (words[first] >> _HIGH << _HIGH) | np.arange(
            self._size + 1, size + 1, dtype=np.uint64
        )
        self._values[self._size : size] = values[first]
        self._size = size

    def _grow(self, size: int) -> None:
        """Makes space for `size` values and inserts the present ones again."""
        while 2 * size > 1 << self._bits:
            self._bits += 1
        values, counts = self.values, self.counts
        half = 1 << (self._bits - 1)
        self._values = np.empty(half, np.uint32)
        self._counts = np.zeros(half, np.int64)
        self._values[: self._size] = values
        self._counts[: self._size] = counts
        self._slots = np.zeros(1 << self._bits, np.uint64)
        self._insert(self.values, np.arange(1, self._size + 1, dtype=np.uint64))

    def _insert(self, values: UInt32, numbers: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Inserts absent values, each into the first free slot from its home slot on.

        Args:
            values: The values, uint32 [rows]; equal ones share a slot, with the first one's number.
            numbers: The low half of each word, uint64 [rows].

        Returns:
            The slot of each value, intp [rows].
        """
        words = (values.astype(np.uint64) << _HIGH) | numbers
        slots = self._home(values)
        mask = len(self._slots) - 1
        pending = np.arange(len(values))
        sought, tried = words, slots
        while pending.size:
            free = np.flatnonzero(self._slots.take(tried) == 0)[::-1]
            # If several words go to one slot, the last one stays. Reversed, that is the first.
            self._slots[tried[free]] = sought[free]
            left = (self._slots.take(tried) >> _HIGH) != (sought >> _HIGH)
            slots[pending] = tried
            pending, sought = pending[left], sought[left]
            tried = (tried[left] + 1) & mask
        return slots
