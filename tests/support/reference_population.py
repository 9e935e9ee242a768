"""Which ids have a row of their own when ids come and go, in plain Python: written to be read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Known(NamedTuple):
    """What is remembered of an id: the number of batches that held it, and the last one."""

    batches: int
    last: int


class Population:
    """The ids of one table.

    Args:
        admit_after: Number of batches that hold an id before it has a row of its own.
        evict_after: Number of steps without an id after which it is forgotten; 0: never.
    """

    def __init__(self, admit_after: int, evict_after: int) -> None:
        self._admit_after, self._evict_after = admit_after, evict_after
        self.known: dict[int, Known] = {}

    def see(self, step: int, ids: NDArray[np.int32]) -> tuple[set[int], set[int]]:
        """Takes the batch of a step; returns its ids with a row, and those whose row is new."""
        self.forget(step)
        before = self.owners()
        for i in sorted(set(ids.tolist())):
            self.known[i] = Known(self.known[i].batches + 1 if i in self.known else 1, step)
        return self.owners(), self.owners() - before

    def forget(self, step: int) -> None:
        """Drops the ids that no batch of the last `evict_after` steps before this one held."""
        if self._evict_after:
            self.known = {
                i: known
                for i, known in self.known.items()
                if step - known.last <= self._evict_after
            }

    def owners(self) -> set[int]:
        """The ids with a row of their own."""
        return {i for i, known in self.known.items() if known.batches > self._admit_after}
