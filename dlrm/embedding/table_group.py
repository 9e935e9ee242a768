"""One group of tables: routing, lookup and update, cut into parts where ranks exchange data.

Routing is done once per step: the keys go to their owners, each owner finds its distinct rows, and
the way back for vectors and gradients is kept as splits and positions. An owner reads each distinct
row once, keeps it until the gradients arrive, sums these by row, and writes each row once.

Each of the three has a part before its exchange, the exchange, and a part after it. Together they
are a step's work on the tables; apart, each can be timed.

Shapes: B local batch, T tables of the group, W width of a row, S width of a stored row (the row
and the optimizer's state), U distinct rows that this rank reads, K keys that it sends (B * T, or
fewer with `compress`), R keys that it receives, N ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding.in_place import in_place_rows
from dlrm.embedding.partition import (
    PartitionKeys,
    distinct,
    for_cpus,
    position_dtype,
    positions,
)
from dlrm.embedding.route import Located, Route
from dlrm.embedding.row_storage import RowStorage
from dlrm.embedding.row_sums import sum_by_row
from dlrm.optim.row_optimizers import RowOptimizer, RowStep


class Addressed(NamedTuple):
    """Keys in the order of their owners; the other attributes are those of their `Route`.

    Attributes:
        keys: int32 or int64 [K].
        sent: int32 [N].
        position_of: int32 or int64 [B * T].
        order: int32 or int64 [K], or empty.
        present: bool [B, T, 1], or empty.
        bad: int32 [].
    """

    keys: tf.Tensor
    sent: tf.Tensor
    position_of: tf.Tensor
    order: tf.Tensor
    present: tf.Tensor
    bad: tf.Tensor


class TableGroup:
    """Consecutive tables that are looked up and updated independently of others.

    Args:
        tables: Which tables of the fused table these are.
        storage: This rank's rows and their state.
        optimizer: Updates rows and state.
        collective: The ranks that share the tables.
        partition: Orders keys by owner.
        compress: See `ShardedEmbedding`.
        bad_ids: See `ShardedEmbedding`.
        exchange_dtype: See `ShardedEmbedding`.

    Attributes:
        tables: As given.
    """

    def __init__(
        self,
        tables: slice,
        storage: RowStorage,
        optimizer: RowOptimizer,
        collective: Collective,
        *,
        partition: PartitionKeys,
        compress: bool,
        bad_ids: str,
        exchange_dtype: str,
    ) -> None:
        self.tables = tables
        self._storage = storage
        self._layout = storage.layout
        self._optimizer = optimizer
        self._in_place = in_place_rows(storage, optimizer)
        self._shared = tables.stop - tables.start if storage.shared else 0
        self._collective = collective
        self._partition = partition
        # A rank alone is the owner, which searches for distinct rows anyway.
        self._compress = compress and collective.size > 1
        self._bad_ids = bad_ids
        self._dtype = exchange_dtype

    def address(self, ids: tf.Tensor) -> Addressed:
        """Makes keys of ids, and orders them by owner.

        Args:
            ids: int32 or int64 [B, T].
        """
        keys, present, bad = self._keys(ids)  # [B * T]
        no_order = tf.zeros([0], position_dtype())
        if self._collective.size == 1:
            count = tf.shape(keys)  # [N = 1]
            return Addressed(keys, count, positions(keys), no_order, present, bad)
        key_of = None
        if self._compress:
            keys, key_of = distinct(keys)  # [K], [B * T]
        keys, order, position_of, sent = self._partition(keys, self._collective.size)
        if key_of is not None:
            position_of, order = tf.gather(position_of, key_of), no_order  # [B * T], [0]
        return Addressed(keys, sent, position_of, order, present, bad)

    def exchange_keys(self, addressed: Addressed) -> tuple[tf.Tensor, tf.Tensor]:
        """Sends the keys to their owners. Returns those received [R], and how many of each rank."""
        return self._exchange(addressed.keys, addressed.sent, "keys")

    def locate(self, addressed: Addressed, keys: tf.Tensor, received: tf.Tensor) -> Route:
        """Finds the distinct rows of the keys received [R], and so completes the route."""
        rows, row_of = self.distinct_rows(keys)
        return Route(rows, row_of, addressed.sent, received, *addressed[2:])

    def distinct_rows(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the distinct rows [U] of keys [R] of this rank, and for each key its row [R]."""
        keys, key_of = distinct(keys)  # [U], [R]
        rows = self._storage.addresses(keys)
        if not self._shared:
            return rows, key_of
        # Several keys may have the same row. The shared rows come first, used or not.
        shared = tf.range(self.tables.start, self.tables.stop, dtype=rows.dtype)
        rows, row_of = distinct(tf.concat([shared, rows], 0))
        return rows, tf.gather(row_of[self._shared :], key_of)

    def read(self, route: Located) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads the rows. Returns a vector [R, W] for each key received, and the rows [U, S].

        Where the update will not ask for the rows, these are left out: [0, S].
        """
        if self._in_place is not None:
            vectors, stored = self._in_place.read(route.rows, route.row_of)
            return tf.cast(vectors, self._dtype), stored
        stored = self._storage.read(route.rows)  # float32 [U, S]
        rows = tf.cast(self._layout.rows_of(stored), self._dtype)  # [U, W]
        return tf.gather(rows, route.row_of), stored

    def fetch(self, addressed: Addressed) -> tf.Tensor:
        """Exchanges keys and vectors [B, T, W]; each key's row is read where it is asked for."""
        keys, received = self.exchange_keys(addressed)  # [R], [N]
        rows = self._layout.rows_of(self._storage.fetch(keys))  # [R, W]
        vectors = self._exchange(tf.cast(rows, self._dtype), received, "vectors")[0]  # [K, W]
        return self.arrange(addressed, vectors)

    def exchange_vectors(self, route: Route, vectors: tf.Tensor) -> tf.Tensor:
        """Sends vectors [R, W] to the ranks that asked for them; [K, W]."""
        return self._exchange(vectors, route.received, "vectors")[0]

    def arrange(self, route: Route | Addressed, vectors: tf.Tensor) -> tf.Tensor:
        """Puts the vectors [K, W] in the order of the samples; [B, T, W]."""
        if self._collective.size > 1:
            vectors = tf.gather(vectors, route.position_of)  # [B * T, W]
        tables = self.tables.stop - self.tables.start
        vectors = tf.reshape(vectors, [-1, tables, self._layout.table.width])
        if self._bad_ids == "zero":
            vectors = tf.where(route.present, vectors, tf.zeros_like(vectors))  # [B, T, W]
        return vectors

    def collect(self, route: Route, gradient: tf.Tensor) -> tf.Tensor:
        """Puts the gradients of vectors [B, T, W] in the order of the keys sent; [K, W]."""
        gradient = tf.cast(gradient, self._dtype)
        if self._bad_ids == "zero":
            gradient = tf.where(route.present, gradient, tf.zeros_like(gradient))
        gradient = tf.reshape(gradient, [-1, self._layout.table.width])  # [B * T, W]
        if self._collective.size == 1:
            return gradient
        if not self._compress:
            return tf.gather(gradient, route.order)
        sums = sum_by_row(gradient, route.position_of, tf.reduce_sum(route.sent))
        return tf.cast(sums, self._dtype)

    def exchange_gradients(self, route: Route, gradient: tf.Tensor) -> tf.Tensor:
        """Sends gradients [K, W] to the owners of their rows; [R, W]."""
        return self._exchange(gradient, route.sent, "gradients")[0]

    def squares(self, route: Located, gradient: tf.Tensor) -> tf.Tensor:
        """Adds up the squares of the gradients [R, W] once these are summed by row, float32 [].

        Shared rows are left out, as their gradients are summed over ranks too.
        """
        return tf.reduce_sum(tf.square(self._sums(route, gradient)[self._shared :]))

    def shared_gradients(self, route: Located, gradient: tf.Tensor) -> tf.Tensor:
        """Sums this rank's gradients [R, W] of each shared row; float32 [T, W], or [0, W]."""
        return self._sums(route, gradient)[: self._shared]

    def update(
        self,
        route: Located,
        stored: tf.Tensor,
        gradient: tf.Tensor,
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
        shared: tf.Tensor | None = None,
    ) -> None:
        """Sums gradients by row, computes the new rows and writes each once.

        Args:
            route: The route that the gradients came by.
            stored: What `read` returned with the vectors.
            gradient: [R, W], one for each key received.
            learning_rate: float32 [].
            gradient_scale: See `Embedding.update`.
            shared: The `shared_gradients` of all ranks together, where rows are shared.
        """
        if self._in_place is not None and self._in_place.descends:
            gradient = tf.cast(gradient, tf.float32)
            step_size = learning_rate * gradient_scale
            self._in_place.descend(route.rows, route.row_of, gradient, step_size)
            return
        sums = self._sums(route, gradient)  # [U, W]
        if self._shared:
            assert shared is not None, "gradients of shared rows are summed over ranks"
            sums = tf.concat([shared, sums[self._shared :]], axis=0)
        rows, state = self._optimizer.apply(
            self._layout.rows_of(stored),  # [U, W]
            self._layout.state_of(stored),  # [U, columns] each
            RowStep(sums, learning_rate, gradient_scale),
        )
        updated = self._layout.join(rows, state)  # [U, S]
        if self._bad_ids == "zero" or self._shared:
            # Not in the batch is a row that was only looked up for ids outside its table, and a
            # shared row that no rank looked up.
            touched = tf.reduce_any(sums != 0, axis=1, keepdims=True)  # [U, 1]
            if self._bad_ids != "zero":
                own = tf.range(tf.shape(sums)[0]) >= self._shared
                touched |= own[:, None]
            updated = tf.where(touched, updated, stored)
        self._storage.write(route.rows, updated)

    def _sums(self, route: Located, gradient: tf.Tensor) -> tf.Tensor:
        """The gradients [R, W] summed by row, float32 [U, W]."""
        return sum_by_row(gradient, route.row_of, tf.size(route.rows))

    def _exchange(
        self, tensor: tf.Tensor, splits: tf.Tensor, what: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What the other ranks send, and how much of it each."""
        return self._collective.alltoall(tensor, splits, name=f"{what}.{self.tables.start}")

    def _keys(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Keys [B * T] of ids [B, T], clipped to their tables; `present` and `bad` of `Route`."""
        ids = tf.cast(ids, self._storage.key_dtype)
        sizes = tf.constant(self._layout.table.vocab_sizes[self.tables], ids.dtype)  # [T]
        offsets = tf.constant(self._layout.table.offsets[self.tables], ids.dtype)
        present, bad = tf.zeros([0], tf.bool), tf.constant(0)
        operations = for_cpus(ids)
        if self._bad_ids == "modulo":
            ids = tf.math.floormod(ids, sizes)
        elif operations is not None and self._bad_ids != "zero":
            keys, outside = operations.keys_of_ids(ids, offsets, sizes)
            return keys, present, outside if self._bad_ids == "error" else bad
        else:
            safe = tf.clip_by_value(ids, tf.zeros_like(sizes), sizes - 1)
            inside = tf.equal(ids, safe)
            if self._bad_ids == "zero":
                present = inside[:, :, None]
            elif self._bad_ids == "error":
                bad = tf.math.count_nonzero(~inside, dtype=tf.int32)
            ids = safe
        return tf.reshape(ids + offsets, [-1]), present, bad
