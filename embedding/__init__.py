"""The distributed embedding tables: one fused table, its rows dealt out over the ranks.

Key k (a table's id plus the rows of the tables before it) lives on rank k % size at local row
k // size. A backend offers three calls for training:

    routes = embedding.route(ids)        # who holds what; needs no weights, so it can run early
    lookup = embedding.lookup(routes)    # lookup.vectors: [local batch, tables, width], in groups
    embedding.update(lookup, gradients, learning_rate)

and `read_rows` and `write_rows`, for checkpoints.

Backends know tensors and the collective; they know nothing of the model or of the loop.
"""

from __future__ import annotations

from collective import Collective
from embedding.alltoall import AllToAllEmbedding, Lookup, Route
from embedding.fused import BAD_IDS, FusedTable

__all__ = ["BAD_IDS", "AllToAllEmbedding", "FusedTable", "Lookup", "Route", "create"]

BACKENDS = ("auto", "alltoall", "sok")


def create(
    backend: str,
    table: FusedTable,
    collective: Collective,
    *,
    compress: bool,
    bad_ids: str,
    exchange_dtype: str,
    groups: int = 1,
) -> AllToAllEmbedding:
    """Builds the tables of this rank.

    Args:
        backend: `auto`, `alltoall` or `sok`; `auto` takes the best that this machine can run.
        table: vocabulary, width and seed.
        collective: the ranks that share the tables.
        compress: unique keys before the exchange.
        bad_ids: what an id outside its table gets: `error`, `clip` or `zero`.
        exchange_dtype: the type in which vectors and their gradients travel.
        groups: of tables, worked on side by side.

    Raises:
        ValueError: the backend cannot run here.
    """
    if backend == "sok":
        from embedding import sok

        sok.require()
    return AllToAllEmbedding(
        table,
        collective,
        compress=compress,
        bad_ids=bad_ids,
        exchange_dtype=exchange_dtype,
        groups=groups,
    )
