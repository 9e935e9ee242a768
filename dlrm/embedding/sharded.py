"""The sharded embedding tables: routing, exchange, and sums of gradients by row.

Routing is done once per step: the keys go to their owners, each owner finds its distinct rows, and
the way back for vectors and gradients is kept as splits and positions. An owner reads each distinct
row once, keeps it until the gradients arrive, sums these by row, and writes each row once.

This module moves keys and vectors between ranks. Where rows are kept is left to a `RowStorage`, and
how they change to a `RowOptimizer`.

Shapes: B local batch, T tables of the group, W width of a row, S width of a stored row (the row
and the optimizer's state), U distinct rows that this rank reads, K keys that it sends (B * T, or
fewer with `compress`), R keys that it receives, N ranks.
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
from dlrm.embedding.partition import (
    PartitionKeys,
    by_owner,
    inverse,
    position_dtype,
    positions,
)
from dlrm.embedding.row_storage import RowStorage
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
            id, `zero` gives a vector of zeros, whose gradient is dropped.
        exchange_dtype: The type in which vectors and gradients are exchanged.
        table_groups: Number of groups of consecutive tables that are looked up and updated
            independently. On CPUs most of this work is done by single-threaded operations, so
            several groups keep several cores busy. A run uses the same number of groups and of
            lanes, but a lane is a slice of the batch and a group is a slice of the tables.
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
        self._optimizer = optimizer
        self._collective = collective
        self._partition = partition
        # A rank alone is the owner, which searches for distinct rows anyway.
        self._compress = compress and collective.size > 1
        self._bad_ids = bad_ids
        self._dtype = exchange_dtype
        tables = len(self.table.vocab_sizes)
        cuts = [tables * group // table_groups for group in range(table_groups + 1)]
        self._groups = [slice(a, b) for a, b in zip(cuts, cuts[1:]) if a < b]

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
            parts = [ids[:, tables] for tables in self._groups]
        assert len(parts) == len(self._groups), "ids for each group of tables"
        return tuple(self._route(part, tables) for part, tables in zip(parts, self._groups))

    def lookup(self, routes: Sequence[Route]) -> Lookup:
        """See `Embedding.lookup`."""
        found = [self._lookup(route, tables) for route, tables in zip(routes, self._groups)]
        vectors, stored = zip(*found)
        return Lookup(vectors, stored, tuple(routes))

    def update(
        self,
        lookup: Lookup,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
    ) -> None:
        """See `Embedding.update`."""
        for tables, route, stored, gradient in zip(
            self._groups, lookup.routes, lookup.stored, gradients
        ):
            rows, state = self._optimizer.apply(
                self._layout.rows_of(stored),  # [U, W]
                self._layout.state_of(stored),  # [U, columns] each
                self._sums_by_row(route, gradient, tables),  # [U, W]
                learning_rate,
                gradient_scale,
            )
            self._storage.write(route.rows, self._layout.join(rows, state))  # [U, S]

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

    def _route(self, ids: tf.Tensor, tables: slice) -> Route:
        """The route of one group of tables.

        Args:
            ids: int32 or int64 [B, T].
            tables: The group.
        """
        ids, present, bad = self._checked(ids, tables)  # [B, T]
        keys = tf.reshape(ids + tf.constant(self.table.offsets[tables], ids.dtype), [-1])  # [B * T]
        no_order = tf.zeros([0], position_dtype())
        if self._collective.size == 1:
            rows, row_of = tf.unique(self._storage.addresses(keys))  # [U], [R = B * T]
            count = tf.shape(keys)  # [N = 1]
            return Route(rows, row_of, count, count, positions(keys), no_order, present, bad)

        key_of = None
        if self._compress:
            keys, key_of = tf.unique(keys)  # [K], [B * T]
        keys, order, sent = self._partition(keys, self._collective.size)  # [K], [K], [N]
        position_of = inverse(order)  # [K]
        if key_of is not None:
            position_of, order = tf.gather(position_of, key_of), no_order  # [B * T], [0]
        keys, received = self._collective.alltoall(keys, sent, name=f"keys.{tables.start}")
        rows, row_of = tf.unique(self._storage.addresses(keys))  # [U], [R]
        return Route(rows, row_of, sent, received, position_of, order, present, bad)

    def _lookup(self, route: Route, tables: slice) -> tuple[tf.Tensor, tf.Tensor]:
        """The vectors [B, T, W] of a routed group, and the stored rows [U, S] behind them."""
        stored = self._storage.read(route.rows)  # float32 [U, S]
        rows = tf.cast(self._layout.rows_of(stored), self._dtype)  # [U, W]
        vectors = tf.gather(rows, route.row_of)  # [R, W]
        if self._collective.size > 1:
            vectors, _ = self._collective.alltoall(
                vectors, route.received, name=f"vectors.{tables.start}"
            )  # [K, W]
            vectors = tf.gather(vectors, route.position_of)  # [B * T, W]
        vectors = tf.reshape(vectors, [-1, tables.stop - tables.start, self.table.width])
        if self._bad_ids == "zero":
            vectors = tf.where(route.present, vectors, tf.zeros_like(vectors))  # [B, T, W]
        return vectors, stored

    def _sums_by_row(self, route: Route, gradient: tf.Tensor, tables: slice) -> tf.Tensor:
        """Sends the gradients of a group's vectors to the rows' owners, which sum them by row.

        Args:
            route: The route that the vectors came by.
            gradient: [B, T, W].
            tables: The group.

        Returns:
            float32 [U, W], sums over all ranks for the rows in `route.rows`.
        """
        gradient = tf.cast(gradient, self._dtype)
        if self._bad_ids == "zero":
            gradient = tf.where(route.present, gradient, tf.zeros_like(gradient))
        gradient = tf.reshape(gradient, [-1, self.table.width])  # [B * T, W]
        if self._collective.size > 1:
            if self._compress:
                gradient = tf.math.unsorted_segment_sum(
                    tf.cast(gradient, tf.float32), route.position_of, tf.reduce_sum(route.sent)
                )  # [K, W]
                gradient = tf.cast(gradient, self._dtype)
            else:
                gradient = tf.gather(gradient, route.order)  # [K, W]
            gradient, _ = self._collective.alltoall(
                gradient, route.sent, name=f"gradients.{tables.start}"
            )  # [R, W]
        return tf.math.unsorted_segment_sum(
            tf.cast(gradient, tf.float32), route.row_of, tf.size(route.rows)
        )

    def _checked(self, ids: tf.Tensor, tables: slice) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids [B, T] that are safe to use, and `present` and `bad` for their `Route`."""
        ids = tf.cast(ids, self._storage.key_dtype)
        last = tf.constant(self.table.vocab_sizes[tables], ids.dtype) - 1  # [T]
        safe = tf.clip_by_value(ids, tf.zeros_like(last), last)
        inside = tf.equal(ids, safe)
        none_present, none_bad = tf.zeros([0], tf.bool), tf.constant(0)
        if self._bad_ids == "zero":
            return safe, inside[:, :, None], none_bad
        if self._bad_ids == "clip":
            return safe, none_present, none_bad
        return safe, none_present, tf.math.count_nonzero(~inside, dtype=tf.int32)
