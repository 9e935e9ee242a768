"""The embedding tables: one fused table whose rows are sharded over the ranks.

Key k (a table's id plus the rows of the tables before it) is owned by rank k % size. Training makes
three calls:

    routes = embedding.route(ids)        # needs no weights, so it can run early
    lookup = embedding.lookup(routes)    # lookup.vectors: [local batch, tables, width], in groups
    embedding.update(lookup, gradients, learning_rate, gradient_scale)

`interface` states them exactly. `ShardedEmbedding` implements them over a storage of rows and an
optimizer, which `create` puts together.

The model and the training loop are no concern of this package.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding import sok_storage
from dlrm.embedding.dynamic_storage import DynamicStorage
from dlrm.embedding.fused_table import FusedTable
from dlrm.embedding.interface import Embedding
from dlrm.embedding.partition import PartitionKeys, by_owner
from dlrm.embedding.route import Lookup, Route
from dlrm.embedding.row_storage import RowLayout, RowStorage
from dlrm.embedding.sharded import ShardedEmbedding
from dlrm.embedding.sok_dynamic import SokDynamicStorage, SokOccurringRows, dynamic_capacity
from dlrm.embedding.traffic import Traffic
from dlrm.embedding.variable_storage import VariableStorage
from dlrm.formats.bags import BagLayout
from dlrm.optim.row_optimizers import RowOptimizer, RowSGD

__all__ = [
    "Backend",
    "Embedding",
    "FusedTable",
    "Lookup",
    "Route",
    "RowLayout",
    "RowStorage",
    "ShardedEmbedding",
    "Traffic",
    "choose",
    "create",
    "dynamic_capacity",
]


class Backend(NamedTuple):
    """The storage that a run uses.

    Attributes:
        name: `alltoall`, `dynamic`, `sok` or `sok_dynamic`.
        reason: Why `auto` chose it; empty if the user named it.
    """

    name: str
    reason: str


def choose(backend: str) -> Backend:
    """Resolves `auto` for this machine, and checks that a backend which the user named can run.

    Raises:
        ValueError: The backend that the user named cannot run here.
    """
    if backend in ("sok", "sok_dynamic"):
        sok_storage.load()
    if backend != "auto":
        return Backend(backend, "")
    if not tf.config.list_logical_devices("GPU"):
        return Backend("alltoall", "no GPU is visible")
    try:
        sok_storage.load()
    except ValueError as error:
        return Backend("alltoall", str(error))
    return Backend("sok", "SparseOperationKit and a GPU are available")


def create(
    backend: str,
    table: FusedTable,
    collective: Collective,
    *,
    optimizer: RowOptimizer | None = None,
    compress: bool = False,
    bad_ids: str = "error",
    exchange_dtype: str = "float32",
    table_groups: int = 1,
    bag_layout: BagLayout | None = None,
    gpu_gib: int = 0,
    sok_rows: int = 0,
    admit_after: int = 0,
    evict_after: int = 0,
) -> Embedding:
    """Creates this rank's share of the tables, with their initial values.

    Args:
        backend: `alltoall` (rows in a TensorFlow variable), `dynamic` (in a hash table of the
            host's memory), `sok` (in a SOK variable) or `sok_dynamic` (in a SOK hash table that
            grows).
        table: The vocabulary, the width and the seed.
        collective: The ranks that share the tables.
        optimizer: How rows are updated; `RowSGD` by default.
        compress: See `ShardedEmbedding`.
        bad_ids: See `ShardedEmbedding`.
        exchange_dtype: See `ShardedEmbedding`.
        table_groups: See `ShardedEmbedding`.
        bag_layout: See `ShardedEmbedding`.
        gpu_gib: GiB of rows that `sok_dynamic` keeps on the GPU.
        sok_rows: Number of rows that `sok_dynamic` has room for, of ids that occur; 0 for the rows
            of all ids.
        admit_after: See `DynamicStorage`; of `dynamic` alone.
        evict_after: See `DynamicStorage`; of `dynamic` alone.

    Raises:
        ValueError: The backend cannot run here.
    """
    optimizer = RowSGD() if optimizer is None else optimizer
    layout = RowLayout(table, optimizer.state_columns(table.width))
    rank, size = collective.rank, collective.size
    storage: RowStorage
    partition: PartitionKeys
    if backend == "alltoall":
        storage, partition = VariableStorage(layout, rank, size), by_owner
    elif backend == "dynamic":
        storage = DynamicStorage(layout, admit_after=admit_after, evict_after=evict_after)
        partition = by_owner
    elif backend == "sok":
        storage = sok_storage.static_storage(layout, rank, size)
        partition = sok_storage.select_by_owner
    else:
        assert backend == "sok_dynamic", backend
        if sok_rows:
            storage = SokOccurringRows(layout, rank, size, gpu_gib=gpu_gib, most_rows=sok_rows)
        else:
            storage = SokDynamicStorage(layout, rank, size, gpu_gib=gpu_gib)
        partition = sok_storage.select_by_owner
    return ShardedEmbedding(
        storage,
        optimizer,
        collective,
        partition=partition,
        compress=compress,
        bad_ids=bad_ids,
        exchange_dtype=exchange_dtype,
        table_groups=table_groups,
        bag_layout=bag_layout,
    )
