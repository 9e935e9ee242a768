"""How many bytes a rank sends to the other ranks in one step, counted from its routes.

The counts need no weights and no TensorFlow. What a rank keeps for itself crosses no wire and does
not count; nor do the few counts and headers with which an exchange begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # it loads TensorFlow
    from dlrm.embedding.route import Route


class Traffic(NamedTuple):
    """Bytes that one rank sends to the others in one step.

    Attributes:
        keys: To the owners of the rows of its samples.
        vectors: To the ranks whose samples need its rows.
        gradients: To the owners of the rows of its samples.
        dense: In the all-reduce of the dense gradients, at the least that any algorithm sends.
    """

    keys: int
    vectors: int
    gradients: int
    dense: int = 0

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(self)


def sent_bytes(routes: Iterable[Route], *, rank: int, key_bytes: int, vector_bytes: int) -> Traffic:
    """Counts what a rank sends for the tables in one step.

    Args:
        routes: The routes of its batch; only `sent_keys`, `sent` and `received` are read.
        rank: This rank.
        key_bytes: Size of a key, and of its weight if there is one.
        vector_bytes: Size of a vector, and of its gradient, as they are exchanged.
    """
    keys = sent = received = 0
    for route in routes:
        keys += to_others(route.sent_keys, rank)
        sent += to_others(route.sent, rank)
        received += to_others(route.received, rank)
    # Vectors go back to where keys came from; gradients follow the way of the keys.
    return Traffic(keys * key_bytes, received * vector_bytes, sent * vector_bytes)


def to_others(counts: object, rank: int) -> int:
    """Adds up counts [N] of all ranks but this one."""
    values = np.asarray(counts, np.int64)
    return int(values.sum() - values[rank])


def all_reduce_bytes(payload: int, size: int) -> int:
    """Returns the least that each rank sends so that all ranks hold the sum of their payloads.

    A ring sends this much: each of `size` parts travels to the other ranks once to be summed, and
    once more as the sum.

    Args:
        payload: Bytes that each rank contributes.
        size: Number of ranks.
    """
    return 2 * payload * (size - 1) // size
