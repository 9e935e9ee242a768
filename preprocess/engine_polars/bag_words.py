"""The ids of bags between the two passes: words that lie beside the provisional records.

A record has the number of ids of each of its bags. The words of its bags follow each other in a
file of their own, bag by bag, and row by row: of each id the id itself and, where the table has
weights, the bits of its weight. So no bag takes more space than its ids. This module must not know
what the words are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocess.options import Options

Int32 = NDArray[np.int32]


class StoredRows(NamedTuple):
    """Records and the words of their bags.

    Attributes:
        records: int32 [rows, columns].
        words: int32 [words]; [0] without bags.
    """

    records: Int32
    words: Int32


class BagWords:
    """Where the words of each bag are.

    Args:
        options: The options of the run, whose last tables are those with bags.
    """

    def __init__(self, options: Options) -> None:
        first = 1 + options.num_dense + options.num_single
        self._columns = slice(first, first + len(options.bags))
        self._widths = np.array([1 + bag.weights for bag in options.bags], np.int64)

    def __len__(self) -> int:
        return len(self._widths)

    def lengths(self, records: Int32) -> Int32:
        """Returns the number of ids in each bag of some records, int32 [rows, bags]."""
        return records[:, self._columns]

    def sizes(self, records: Int32) -> NDArray[np.int64]:
        """Returns the number of words of each record, int64 [rows]."""
        return self.lengths(records) @ self._widths

    def join(self, records: Int32, bags: Sequence[Int32]) -> Int32:
        """Returns the words of some records.

        Args:
            records: The records.
            bags: For each table with bags the words of all its ids, int32 [ids, 1 or 2].
        """
        if len(self) == 1:
            return bags[0].reshape(-1)
        owners = self._owners(records)
        words = np.empty(len(owners), np.int32)
        for bag, own in enumerate(bags):
            words[owners == bag] = own.reshape(-1)
        return words

    def cut(self, rows: StoredRows) -> list[Int32]:
        """Returns the words of each table with bags, int32 [ids, 1 or 2]: the inverse of `join`."""
        if len(self) == 1:
            return [rows.words.reshape(-1, self._widths[0])]
        owners = self._owners(rows.records)
        return [
            rows.words[owners == bag].reshape(-1, width)
            for bag, width in enumerate(self._widths.tolist())
        ]

    def take(self, rows: StoredRows, chosen: slice | NDArray[np.intp]) -> StoredRows:
        """Returns some of the rows, in the order in which they are chosen."""
        records = rows.records[chosen]
        if not len(self):
            return StoredRows(records, rows.words)
        ends = np.cumsum(self.sizes(rows.records))
        sizes = self.sizes(records)
        starts = ends[chosen] - sizes
        if isinstance(chosen, slice):
            first = int(starts[0]) if len(starts) else 0
            return StoredRows(records, rows.words[first : first + int(sizes.sum())])
        shifts = starts - (np.cumsum(sizes) - sizes)
        return StoredRows(records, rows.words[np.repeat(shifts, sizes) + np.arange(sizes.sum())])

    def _owners(self, records: Int32) -> NDArray[np.uint16]:
        """Returns which table with bags each word belongs to, by its index among them."""
        spans = self.lengths(records) * self._widths
        bags = np.tile(np.arange(len(self), dtype=np.uint16), len(records))
        return np.repeat(bags, spans.reshape(-1))
