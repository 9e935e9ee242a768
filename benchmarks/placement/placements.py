"""Which rank owns which key: rows by modulo, rows by hash, and whole tables by a heuristic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.formats import splitmix64

Keys = NDArray[np.int64]
BY_MODULO, BY_HASH, WHOLE_TABLES = "rows by modulo", "rows by hash", "whole tables"
DENSE_APART = 4  # with more ranks, the heuristic keeps rank 0 free of tables


@dataclass(frozen=True)
class Placement:
    """A way to distribute the rows.

    Attributes:
        name: Its name in the tables that are printed.
        owner_of: The owners of keys.
        rows: The number of rows that each rank keeps; empty where it is not counted.
        bottom_on: The rank that computes the bottom MLP for all samples and sends its output like
            the vectors of one more table; None if each rank does so for its own samples.
    """

    name: str
    owner_of: Callable[[Keys], Keys]
    rows: Sequence[int]
    bottom_on: Optional[int] = None


def placements(vocab_sizes: Sequence[int], ranks: int) -> list[Placement]:
    """All placements, this project's first."""
    offsets = sharding.key_offsets(vocab_sizes)
    owners = np.array(owners_of_tables(vocab_sizes, ranks))
    total = sum(vocab_sizes)

    def by_hash(keys: Keys) -> Keys:
        words = keys.astype(np.uint64)
        splitmix64.mix(words)
        return (words % np.uint64(ranks)).astype(np.int64)

    return [
        Placement(
            BY_MODULO,
            lambda keys: sharding.owner_of(keys, ranks),
            [sharding.local_rows(total, rank, ranks) for rank in range(ranks)],
        ),
        Placement(BY_HASH, by_hash, ()),
        Placement(
            WHOLE_TABLES,
            lambda keys: owners[np.searchsorted(offsets, keys, side="right") - 1],
            np.bincount(owners, vocab_sizes, minlength=ranks).astype(int).tolist(),
            bottom_on=0,
        ),
    ]


def owners_of_tables(vocab_sizes: Sequence[int], ranks: int) -> list[int]:
    """Places whole tables as NVIDIA's DLRM for PyTorch does.

    From the largest table to the smallest, each goes to the rank with the fewest rows so far among
    those that do not yet hold their share of the number of tables, rounded up. With more than four
    ranks, rank 0 gets none: it computes the bottom MLP.

    Returns:
        The owner of each table.
    """
    first = 1 if ranks > DENSE_APART else 0
    most = -(-len(vocab_sizes) // (ranks - first))
    rows, tables = dict.fromkeys(range(first, ranks), 0), [0] * ranks
    owners = [0] * len(vocab_sizes)
    for table in sorted(range(len(vocab_sizes)), key=lambda table: -vocab_sizes[table]):
        owner = min((r for r in rows if tables[r] < most), key=lambda rank: rows[rank])
        rows[owner] += vocab_sizes[table]
        tables[owner] += 1
        owners[table] = owner
    return owners
