"""What ids have where only known ones have a row of their own, one id after the other in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def initial_value(counter: int, seed: int) -> float:
    """Value number `counter` of SplitMix64, in [-1, 1)."""
    z = (seed * GAMMA * GAMMA + (counter + 1) * GAMMA) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return float((z ^ (z >> 31)) >> 40) / 2**23 - 1


def initial_row(number: int, table: int, sizes: Sequence[int], width: int, seed: int) -> Any:
    """The initial values of an id of a table among others, float64 [width]."""
    bound = 1 / np.sqrt(float(sizes[table]))
    key = sum(sizes[:table]) + number
    return np.array([initial_value(key * width + j, seed) * bound for j in range(width)])


class KnownTableReference:
    """The rows of a table by id.

    Args:
        ids: The known ids.
        rows: That of all others, then theirs, [1 + ids, W].
        sizes: The bounds of the ids of all tables.
        table: The number of this table.
        seed: That of the initial values which ids without a row have; None if they have row 0.
    """

    def __init__(
        self,
        ids: Sequence[int],
        rows: NDArray[Any],
        sizes: Sequence[int],
        table: int,
        seed: int | None,
    ) -> None:
        self.known = {number: rows[place + 1] for place, number in enumerate(ids)}
        self._others, self._sizes, self._table, self._seed = rows[0], sizes, table, seed
        self.shape = (sizes[table], rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def _row(self, number: int) -> NDArray[Any]:
        if number in self.known:
            return self.known[number]
        if self._seed is None:
            return self._others
        return initial_row(number, self._table, self._sizes, self.shape[1], self._seed)

    def __getitem__(self, ids: Any) -> NDArray[Any]:
        """Returns the rows of ids, float64 [..., W]."""
        if np.ndim(ids) == 0:
            return self._row(int(ids))
        return np.array([self._row(int(number)) for number in ids]).reshape(-1, self.shape[1])
