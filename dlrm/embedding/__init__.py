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

from typing import Any

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding.fused_table import BAD_IDS, FusedTable, capacity
from dlrm.embedding.sharded import AllToAllEmbedding, Lookup, Route

__all__ = [
    "BAD_IDS",
    "AllToAllEmbedding",
    "FusedTable",
    "Lookup",
    "Route",
    "capacity",
    "choose",
    "create",
]


def choose(backend: str) -> tuple[str, str]:
    """What `auto` stands for on this machine, and why; any other backend is itself.

    Returns:
        The backend, and the reason in words, empty for one that the user named.

    Raises:
        ValueError: the backend that the user named cannot run here.
    """
    from dlrm.embedding import sok_storage as sok

    if backend in ("sok", "sok_dynamic"):
        sok.load()
    if backend != "auto":
        return backend, ""
    if not tf.config.list_logical_devices("GPU"):
        return "alltoall", "no GPU is visible"
    try:
        sok.load()
    except ValueError as error:
        return "alltoall", str(error)
    return "sok", "SparseOperationKit and a GPU are here"


def create(
    backend: str,
    table: FusedTable,
    collective: Collective,
    *,
    gpu_gigabytes: int = 0,
    **settings: Any,
) -> AllToAllEmbedding:
    """Builds the tables of this rank.

    Args:
        backend: `alltoall`, `sok` or `sok_dynamic`.
        table: vocabulary, width and seed.
        collective: the ranks that share the tables.
        gpu_gigabytes: of rows that `sok_dynamic` keeps on the GPU.
        settings: as `AllToAllEmbedding` takes them.

    Raises:
        ValueError: the backend cannot run here.
    """
    if backend == "alltoall":
        return AllToAllEmbedding(table, collective, **settings)
    from dlrm.embedding import sok_storage as sok

    if backend == "sok":
        return sok.SokEmbedding(table, collective, **settings)
    return sok.SokDynamicEmbedding(table, collective, gpu_gigabytes=gpu_gigabytes, **settings)
