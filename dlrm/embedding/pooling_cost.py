"""Where a bag is pooled, so that fewer bytes cross the wire: at the owners of its rows, or after.

Pooled at the owners, a bag needs one partial sum from each rank that owns a row of it. Pooled after
the exchange, it needs the rows themselves: each distinct row of the local batch once, with
`compress`. Ids are taken to be uniform over their table; those of real data repeat more often,
which favours distinct rows. The counts depend on the data's description and the settings alone,
and so are the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlrm.formats.bags import BagLayout


def partial_sums(ids: float, ranks: int) -> float:
    """Expected number of ranks that own rows of a bag of ids: N (1 - (1 - 1 / N)^ids)."""
    return ranks * (1 - (1 - 1 / ranks) ** ids)


def distinct_ids(ids: float, rows: int) -> float:
    """Expected number of distinct ids among those drawn from a table: R (1 - (1 - 1 / R)^ids)."""
    return rows * (1 - (1 - 1 / rows) ** ids)


def bytes_per_bag(
    layout: BagLayout,
    table: int,
    rows: int,
    *,
    ranks: int,
    local_batch: int,
    compress: bool,
    key_bytes: int,
    vector_bytes: int,
) -> tuple[float, float]:
    """Bytes that one bag needs of all exchanges of a step, those that stay on the rank included.

    These are its keys, their weights, and vectors there and gradients back.

    Args:
        layout: How the tables are pooled.
        table: The table of the bag.
        rows: Number of its rows.
        ranks: Number of ranks.
        local_batch: Number of samples of one step on a rank.
        compress: Whether each distinct key of the local batch is sent only once.
        key_bytes: Size of a key.
        vector_bytes: Size of a vector as it is exchanged.

    Returns:
        The bytes when pooled at the owners, and when pooled after the exchange.
    """
    ids = layout.mean_ids[table]
    weight_bytes = 4 if layout.weights else 0
    at_owner = ids * (key_bytes + weight_bytes) + partial_sums(ids, ranks) * 2 * vector_bytes
    sent = distinct_ids(ids * local_batch, rows) / local_batch if compress else ids
    return at_owner, sent * (key_bytes + weight_bytes + 2 * vector_bytes)


def pooled_at_owner(
    layout: BagLayout, vocab_sizes: Sequence[int], *, compress: bool, **sizes: int
) -> tuple[bool, ...]:
    """Decides for each table whether its bags are pooled at the owners of their rows.

    Without `compress` all are: there are never more partial sums than ids.

    Args:
        layout: How the tables are pooled.
        vocab_sizes: Number of rows of each table.
        compress: Whether each distinct key of the local batch is sent only once.
        sizes: The other arguments of `bytes_per_bag`.
    """
    if not compress:
        return (True,) * len(vocab_sizes)
    costs = [
        bytes_per_bag(layout, table, rows, compress=True, **sizes)
        for table, rows in enumerate(vocab_sizes)
    ]
    return tuple(at_owner < after for at_owner, after in costs)
