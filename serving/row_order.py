"""The order of an artifact's rows by use, most used first, over all tables.

Every row has the same size, so the most used share of the bytes is a prefix of this order. Where
the counts come from, and how rows are stored, is not its concern.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_INT32_LIMIT = 1 << 31


class RowOrder(NamedTuple):
    """A permutation of the keys, in both directions.

    Attributes:
        positions: The position of each key, int32 [K], or int64 from 2**31 rows on.
        keys: The key at each position, of the same type and shape.
    """

    positions: NDArray[Any]
    keys: NDArray[Any]


def order_by_use(counts: NDArray[np.int64]) -> RowOrder:
    """Sorts the keys by falling count; keys of equal count stay in order.

    Args:
        counts: The number of uses of each key, int64 [K].
    """
    dtype = position_type(len(counts))
    keys = np.argsort(-counts, kind="stable").astype(dtype)
    positions = np.empty_like(keys)
    positions[keys] = np.arange(len(keys), dtype=dtype)
    return RowOrder(positions, keys)


def position_type(rows: int) -> np.dtype[Any]:
    """The type of the positions of so many rows."""
    return np.dtype("<i4" if rows < _INT32_LIMIT else "<i8")
