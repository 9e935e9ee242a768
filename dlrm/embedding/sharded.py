"""The sharded embedding tables: all groups of tables together, and access to this rank's rows.

This module and `table_group` move keys and vectors between ranks. Where rows are kept is left to a
`RowStorage`, and how they change to a `RowOptimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective
from dlrm.embedding.fused_table import FusedTable
from dlrm.embedding.interface import Lookup, Route
from dlrm.embedding.partition import PartitionKeys, by_owner
from dlrm.embedding.row_storage import RowStorage
from dlrm.embedding.table_group import TableGroup
from dlrm.embedding.traffic import Traffic, sent_bytes
from dlrm.optim.row_optimizers import RowOptimizer, StateColumns


class ShardedEmbedding:
    """An `Embedding` of any storage and any optimizer.

    Args:
        storage: This rank's rows and their state.
        optimizer: Updates rows and state; the state must be that of the storage's layout.
        collective: The ranks that share the tables.
        partition: Orders keys by owner.
        compress: Whether to send each distinct key of the local batch only once.
        bad_ids: What happens with ids outside their table. `error` counts them in `Route.bad` (they
            are clipped, so that memory stays safe until the caller stops), `clip` takes the nearest
            id, `zero` gives a vector of zeros, whose gradient is dropped, `modulo` takes the id
            modulo the table's size.
        exchange_dtype: The type in which vectors and gradients are exchanged.
        table_groups: Number of groups of consecutive tables that are looked up and updated
            independently. On CPUs most of this work is done by single-threaded operations, so
            several groups keep several cores busy. A run uses the same number of groups and of
            lanes, but a lane is a slice of the batch and a group is a slice of the tables.

    Attributes:
        groups: The groups of tables.
    """

    def __init__(
        self,
        storage: RowStorage,
        optimizer: RowOptimizer,
        collective: Collective,
        *,
        partition: PartitionKeys = by_owner,
        compress: bool = False,
        bad_ids: str = "error",
        exchange_dtype: str = "float32",
        table_groups: int = 1,
    ) -> None:
        assert bad_ids in sharding.BAD_ID_POLICIES, bad_ids
        self._storage = storage
        self._layout = storage.layout
        self._collective = collective
        self._dtype = exchange_dtype
        tables = len(self.table.vocab_sizes)
        cuts = [tables * group // table_groups for group in range(table_groups + 1)]
        self.groups = [
            TableGroup(
                slice(a, b),
                storage,
                optimizer,
                collective,
                partition=partition,
                compress=compress,
                bad_ids=bad_ids,
                exchange_dtype=exchange_dtype,
            )
            for a, b in zip(cuts, cuts[1:])
            if a < b
        ]

    @property
    def table(self) -> FusedTable:
        """See `Embedding.table`."""
        return self._layout.table

    @property
    def state(self) -> tuple[StateColumns, ...]:
        """See `Embedding.state`."""
        return self._layout.state

    @property
    def local_rows(self) -> int:
        """See `Embedding.local_rows`."""
        return sharding.local_rows(self.table.rows, self._collective.rank, self._collective.size)

    def route(self, ids: tf.Tensor | list[tf.Tensor] | tuple[tf.Tensor, ...]) -> tuple[Route, ...]:
        """See `Embedding.route`."""
        if isinstance(ids, (list, tuple)):
            parts = list(ids)
        else:
            parts = [ids[:, group.tables] for group in self.groups]
        assert len(parts) == len(self.groups), "ids for each group of tables"
        routes = []
        for group, part in zip(self.groups, parts):
            addressed = group.address(part)
            routes.append(group.locate(addressed, *group.exchange_keys(addressed)))
        return tuple(routes)

    def lookup(self, routes: Sequence[Route]) -> Lookup:
        """See `Embedding.lookup`."""
        found, stored = [], []
        for group, route in zip(self.groups, routes):
            vectors, rows = group.read(route)
            found.append(group.arrange(route, group.exchange_vectors(route, vectors)))
            stored.append(rows)
        return Lookup(tuple(found), tuple(stored), tuple(routes))

    def fetch(self, ids: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """See `Embedding.fetch`."""
        addressed = [group.address(ids[:, group.tables]) for group in self.groups]
        vectors = tuple(group.fetch(part) for group, part in zip(self.groups, addressed))
        return vectors, tf.add_n([part.bad for part in addressed])

    def exchange_gradients(
        self, lookup: Lookup, gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, ...]:
        """See `Embedding.exchange_gradients`."""
        return tuple(
            group.exchange_gradients(route, group.collect(route, gradient))
            for group, route, gradient in zip(self.groups, lookup.routes, gradients)
        )

    def squares(self, lookup: Lookup, received: Sequence[tf.Tensor]) -> tf.Tensor:
        """See `Embedding.squares`."""
        return tf.add_n(
            [
                group.squares(route, gradient)
                for group, route, gradient in zip(self.groups, lookup.routes, received)
            ]
        )

    def update_rows(
        self,
        lookup: Lookup,
        received: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
    ) -> None:
        """See `Embedding.update_rows`."""
        for group, route, stored, gradient in zip(
            self.groups, lookup.routes, lookup.stored, received
        ):
            group.update(route, stored, gradient, learning_rate, gradient_scale)

    def update(
        self,
        lookup: Lookup,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
    ) -> None:
        """See `Embedding.update`."""
        received = self.exchange_gradients(lookup, gradients)
        self.update_rows(lookup, received, learning_rate, gradient_scale)

    def traffic(self, routes: Sequence[Route]) -> Traffic:
        """See `Embedding.traffic`."""
        return sent_bytes(
            routes,
            rank=self._collective.rank,
            key_bytes=self._storage.key_dtype.size,
            vector_bytes=self.table.width * tf.as_dtype(self._dtype).size,
        )

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """See `Embedding.read_rows`."""
        return self._storage.read_rows(first, last)

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """See `Embedding.write_rows`."""
        self._storage.write_rows(rows, stored)
