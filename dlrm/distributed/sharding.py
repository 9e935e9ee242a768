"""From ids to keys, and from keys to ranks: the arithmetic that everything sharded agrees on.

All embedding tables are laid one behind the other in one fused table. The key of an id is its row
in the fused table. Key k belongs to rank k % size, where it is local row k // size; a checkpoint's
file of that rank holds the same rows in the same order.

The functions take Python integers, NumPy arrays and tensors alike. They import neither TensorFlow
nor Horovod, so that tools which only read files load quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the settings need BAD_ID_POLICIES where NumPy may be missing
    import numpy as np
    from numpy.typing import NDArray

# What can be done with an id that is not in its table and so has no key: stop, take the nearest
# id, look up a vector of zeros, or take the id modulo the table's size.
BAD_ID_POLICIES = ("error", "clip", "zero", "modulo")


def key_offsets(vocab_sizes: Sequence[int]) -> NDArray[np.int64]:
    """The key of each table's id 0, int64 [tables]."""
    import numpy as np

    return np.concatenate([[0], np.cumsum(vocab_sizes[:-1], dtype=np.int64)])


def moved_keys(
    keys: NDArray[np.int64], before: Sequence[int], after: Sequence[int]
) -> NDArray[np.int64]:
    """The keys of the same ids in tables with other numbers of rows.

    Args:
        keys: The keys in the tables as they were, int64 [n].
        before: Number of rows of each table, as it was.
        after: Number of rows of each table, as it is; no fewer.

    Returns:
        int64 [n].
    """
    import numpy as np

    offsets = key_offsets(before)
    tables = np.searchsorted(offsets, keys, side="right") - 1
    return keys + (key_offsets(after) - offsets)[tables]


def owner_of(keys: Any, size: int) -> Any:
    """The ranks that own the keys."""
    return keys % size


def local_row_of(keys: Any, size: int) -> Any:
    """The keys' rows on their owners."""
    return keys // size


def key_of(local_rows: Any, rank: int, size: int) -> Any:
    """The keys of a rank's local rows."""
    return local_rows * size + rank


def local_rows(keys: int, rank: int, size: int) -> int:
    """The number of the keys 0 .. keys - 1 that the rank owns."""
    return (keys - rank + size - 1) // size
