"""The sharded embedding tables: all groups of tables together, and access to this rank's rows.

This module, `table_group` and, for bags of ids, `bag_group` move keys and vectors between ranks.
Where rows are kept is left to a `RowStorage`, and how they change to a `RowOptimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective
from dlrm.embedding.bag_group import BagGroup
from dlrm.embedding.fused_table import FusedTable
from dlrm.embedding.interface import Ids
from dlrm.embedding.partition import PartitionKeys, by_owner
from dlrm.embedding.route import Lookup, Route
from dlrm.embedding.row_storage import OccurringRows, RowStorage
from dlrm.embedding.table_group import TableGroup
from dlrm.embedding.traffic import Traffic, sent_bytes
from dlrm.formats.bags import BagLayout, Bags
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
        bag_layout: How bags of ids are pooled; None if every table has one id for each sample.

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
        bag_layout: BagLayout | None = None,
    ) -> None:
        assert bad_ids in sharding.BAD_ID_POLICIES, bad_ids
        self._storage = storage
        self._layout = storage.layout
        self._collective = collective
        self._dtype = exchange_dtype
        self._bag_layout = bag_layout
        options: dict[str, Any] = {
            "compress": compress,
            "bad_ids": bad_ids,
            "exchange_dtype": exchange_dtype,
        }
        # Under bags, ids are checked and vectors are exchanged by the groups around these.
        own = (
            options
            if bag_layout is None
            else {**options, "bad_ids": "error", "exchange_dtype": "float32"}
        )
        groups = [
            TableGroup(tables, storage, optimizer, collective, partition=partition, **own)
            for tables in self._cut(table_groups)
        ]
        self.groups: Sequence[Any] = groups
        if bag_layout is not None:
            self.groups = [
                BagGroup(group, storage, collective, bag_layout, **options) for group in groups
            ]

    def _cut(self, groups: int) -> list[slice]:
        """Cuts the tables into groups of about as many ids."""
        tables = len(self.table.vocab_sizes)
        cuts = [tables * group // groups for group in range(groups + 1)]
        if self._bag_layout is not None:
            ends = np.cumsum(self._bag_layout.mean_ids)
            inner = [
                int(np.abs(ends - ends[-1] * g / groups).argmin()) + 1 for g in range(1, groups)
            ]
            cuts = [0, *inner, tables]
        return [slice(a, b) for a, b in zip(cuts, cuts[1:]) if a < b]

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

    @property
    def shares_rows(self) -> bool:
        """See `Embedding.shares_rows`."""
        return self._storage.shared > 0

    def begin_step(self, step: int) -> None:
        """See `Embedding.begin_step`."""
        if self.dynamic is not None:
            self.dynamic.begin_step(step)

    @property
    def dynamic(self) -> OccurringRows | None:
        """See `Embedding.dynamic`."""
        return self._storage if isinstance(self._storage, OccurringRows) else None

    def ids_spec(self, batch: int) -> tf.TensorSpec | Bags:
        """See `Embedding.ids_spec`."""
        tables = len(self.table.vocab_sizes)
        if self._bag_layout is None:
            return tf.TensorSpec([batch, tables], tf.int32)
        return Bags(
            ids=tf.TensorSpec([None], tf.int32),
            lengths=tf.TensorSpec([tables, batch], tf.int32),
            weights=tf.TensorSpec([None if self._bag_layout.weights else 0], tf.float32),
        )

    def ids_of_groups(self, ids: Ids) -> list[Any]:
        """The ids of each group of tables."""
        if not isinstance(ids, Bags):
            if isinstance(ids, (list, tuple)):
                parts = list(ids)
            else:
                parts = [ids[:, group.tables] for group in self.groups]
            assert len(parts) == len(self.groups), "ids for each group of tables"
            return parts
        counts = tf.reduce_sum(ids.lengths, axis=1)  # [all tables]
        sizes = tf.stack([tf.reduce_sum(counts[group.tables]) for group in self.groups])
        of_ids = tf.split(ids.ids, sizes, num=len(self.groups))
        of_weights = [tf.convert_to_tensor(ids.weights)] * len(self.groups)
        if self._bag_layout is not None and self._bag_layout.weights:
            of_weights = tf.split(ids.weights, sizes, num=len(self.groups))
        return [
            Bags(part, ids.lengths[group.tables], weights)
            for group, part, weights in zip(self.groups, of_ids, of_weights)
        ]

    def route(self, ids: Ids) -> tuple[Route, ...]:
        """See `Embedding.route`."""
        routes = []
        for group, part in zip(self.groups, self.ids_of_groups(ids)):
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

    def fetch(self, ids: tf.Tensor | Bags) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """See `Embedding.fetch`."""
        parts = self.ids_of_groups(ids)
        addressed = [group.address(part) for group, part in zip(self.groups, parts)]
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

    def shared_gradients(
        self, lookup: Lookup, received: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, ...]:
        """See `Embedding.shared_gradients`."""
        if not self.shares_rows:
            return ()
        return tuple(
            group.shared_gradients(route, gradient)
            for group, route, gradient in zip(self.groups, lookup.routes, received)
        )

    def update_rows(
        self,
        lookup: Lookup,
        received: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
        shared: Sequence[tf.Tensor] = (),
    ) -> None:
        """See `Embedding.update_rows`."""
        for group, route, stored, gradient, of_shared in zip(
            self.groups, lookup.routes, lookup.stored, received, shared or [None] * len(self.groups)
        ):
            group.update(route, stored, gradient, learning_rate, gradient_scale, of_shared)

    def update(
        self,
        lookup: Lookup,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
    ) -> None:
        """See `Embedding.update`."""
        assert not self.shares_rows, "gradients of shared rows are summed over ranks"
        received = self.exchange_gradients(lookup, gradients)
        self.update_rows(lookup, received, learning_rate, gradient_scale)

    def traffic(self, routes: Sequence[Route]) -> Traffic:
        """See `Embedding.traffic`."""
        weights = self._bag_layout is not None and self._bag_layout.weights
        return sent_bytes(
            routes,
            rank=self._collective.rank,
            key_bytes=self._storage.key_dtype.size + (tf.float32.size if weights else 0),
            vector_bytes=self.table.width * tf.as_dtype(self._dtype).size,
        )

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """See `Embedding.read_rows`."""
        return self._storage.read_rows(first, last)

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """See `Embedding.write_rows`."""
        self._storage.write_rows(rows, stored)
