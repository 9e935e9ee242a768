"""The random bags of MLPerf's multi-hot data, as its reference draws them.

The reference seeds NumPy's legacy generator once. For each feature in order it draws a table with
one row for each id: the id itself, and behind it numbers uniform below the number of rows. A
sample's id, modulo the number of rows, picks its bag. The tables of all 26 features take 24 GB; but
the stream of numbers is the same when drawn in blocks of rows, so only the rows of ids that occur
need be kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_NUMBERS = 1 << 22


class RandomBags:
    """Draws the bags of one feature after the other.

    Args:
        seed: The seed of all features together; MLPerf's is 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.RandomState(seed)  # the stream of numpy.random.seed

    def of_feature(self, rows: int, hotness: int, wanted: NDArray[np.int32]) -> NDArray[np.int32]:
        """Draws the next feature's table, and keeps the bags of some ids.

        Args:
            rows: Number of rows of the feature's table.
            hotness: Number of ids in a bag, from 1.
            wanted: Distinct ids below `rows`, ascending, int32 [n].

        Returns:
            int32 [n, hotness].
        """
        bags = np.empty((len(wanted), hotness), np.int32)
        bags[:, 0] = wanted
        if hotness == 1:
            return bags
        block = max(1, _BLOCK_NUMBERS // (hotness - 1))
        for first in range(0, rows, block):
            last = min(first + block, rows)
            # Of the default type, int64, as in the reference.
            numbers = self._generator.randint(0, rows, size=(last - first, hotness - 1))
            begin, end = np.searchsorted(wanted, [first, last])
            bags[begin:end, 1:] = numbers[wanted[begin:end] - first]
        return bags
