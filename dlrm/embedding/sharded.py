"""The tables over plain TensorFlow and an all-to-all exchange, on CPUs and GPUs alike.

Routing is done once a step: the keys go to their owners, each owner finds its distinct rows, and
the way back for vectors and gradients is kept as splits and positions. An owner reads each distinct
row once, keeps it until the gradients arrive, sums these by row, and writes each row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed.collective import Collective
from dlrm.embedding.fused_table import FusedTable, local_table
from dlrm.optim.row_optimizers import RowSGD


class Route(NamedTuple):
    """The way of a group of tables' keys to their owners and back. N is the number of ranks.

    Attributes:
        rows: int32 or int64 [U], the distinct local rows that this rank must read for all ranks.
        row_of: int32 [R], for each key received, its place in `rows`.
        sent: int32 [N], keys sent to each rank.
        received: int32 [N], keys received from each rank; R in all.
        place_of: int32 or int64 [local batch * tables of the group], where each vector's key
            stands among those sent.
        order: likewise [keys sent], the vector that each was sent for; empty with `compress`,
            where one key serves several.
        present: bool [local batch, tables of the group, 1] with bad_ids `zero`, False for ids
            outside their table; else empty.
        bad: int32 [], ids outside their table, counted with bad_ids `error`, else 0.
    """

    rows: tf.Tensor
    row_of: tf.Tensor
    sent: tf.Tensor
    received: tf.Tensor
    place_of: tf.Tensor
    order: tf.Tensor
    present: tf.Tensor
    bad: tf.Tensor


class Lookup(NamedTuple):
    """A batch's vectors, and what their gradient needs on the way back, for each group of tables.

    Attributes:
        vectors: [local batch, tables of the group, width] in the exchange type.
        values: float32 [U, width], the distinct rows as they were read.
        routes: the way that the vectors came.
    """

    vectors: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    routes: tuple[Route, ...]


class AllToAllEmbedding:
    """This rank's share of the tables.

    Args:
        table: vocabulary, width and seed.
        collective: the ranks that share the tables.
        compress: send each distinct key of the local batch once.
        bad_ids: `error` counts ids outside their table in `Route.bad` (they are clipped, so that
            memory stays safe until the caller stops), `clip` takes the nearest id, `zero` gives a
            vector of zeros and trains nothing.
        exchange_dtype: the type in which vectors and gradients travel.
        groups: the tables are looked up and updated in so many groups. On CPUs most of this work
            is done by operations of one thread each, so several groups keep several cores busy.
    """

    def __init__(
        self,
        table: FusedTable,
        collective: Collective,
        *,
        compress: bool = False,
        bad_ids: str = "error",
        exchange_dtype: str = "float32",
        groups: int = 1,
    ) -> None:
        self.table = table
        self._optimizer = RowSGD()
        self._collective = collective
        self.variable = self._new_table()
        # Alone, the owner's own search for distinct rows already is the compression.
        self._compress = compress and collective.size > 1
        self._bad_ids = bad_ids
        self._dtype = exchange_dtype
        # On GPUs TensorFlow keeps int32 values on the host; elsewhere they are half the bytes.
        self._on_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._key_dtype = tf.int32 if table.rows < 2**31 and not self._on_gpu else tf.int64
        self._place_dtype = tf.int64 if self._on_gpu else tf.int32
        tables = len(table.vocab_sizes)
        cuts = [tables * group // groups for group in range(groups + 1)]
        self._groups = [slice(a, b) for a, b in zip(cuts, cuts[1:]) if a < b]

    def route(self, ids: tf.Tensor) -> tuple[Route, ...]:
        """Sends the keys of a batch to their owners.

        Args:
            ids: int32 or int64 [local batch, tables].

        Returns:
            A route for each group of tables.
        """
        return tuple(self._route(ids[:, tables], tables) for tables in self._groups)

    def lookup(self, routes: Sequence[Route]) -> Lookup:
        """Fetches the vectors of a routed batch."""
        found = [self._lookup(route, tables) for route, tables in zip(routes, self._groups)]
        vectors, values = zip(*found)
        return Lookup(vectors, values, tuple(routes))

    def update(
        self,
        lookup: Lookup,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float = 1.0,
    ) -> None:
        """One step of the optimizer on the rows of a batch.

        The exchange does not wait for `learning_rate`, so a check that the step may be taken can
        be hung on it.

        Args:
            lookup: of this batch; the tables must not have been updated since.
            gradients: of `lookup.vectors`.
            learning_rate: float32 [].
            gradient_scale: The gradient of the loss is `gradient_scale` times a row's sum.
        """
        for tables, route, values, gradient in zip(
            self._groups, lookup.routes, lookup.values, gradients
        ):
            sums = self._sums_by_row(route, gradient, tables)
            rows, _ = self._optimizer.apply(values, (), sums, learning_rate, gradient_scale)
            self._write(route.rows, rows)

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """A copy of local rows [first, last), float32 [last - first, width]."""
        # A gather: any other way of reading makes TensorFlow copy the whole variable first.
        rows = tf.gather(self.variable, tf.range(first, last, dtype=tf.int64))
        return np.asarray(memoryview(rows)) if last > first else rows.numpy()

    def write_rows(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Overwrites local rows.

        Args:
            rows: int64 [n].
            values: float32 [n, width].
        """
        self._write(rows, values)

    def _new_table(self) -> tf.Variable:
        return local_table(self.table, self._collective.rank, self._collective.size)

    def _by_owner(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Keys in the order of their owners, where each stood before, and how many each gets."""
        size = self._collective.size
        owner = tf.cast(keys % size, tf.int32)
        parts = tf.dynamic_partition(keys, owner, size)
        places = tf.dynamic_partition(self._places(keys), owner, size)
        return tf.concat(parts, 0), tf.concat(places, 0), tf.stack([tf.size(p) for p in parts])

    def _places(self, tensor: tf.Tensor) -> tf.Tensor:
        """0, 1, .. for each element."""
        return tf.range(tf.size(tensor, self._place_dtype), dtype=self._place_dtype)

    def _inverse(self, order: tf.Tensor) -> tf.Tensor:
        """The permutation that undoes `order`."""
        if not self._on_gpu:
            return tf.math.invert_permutation(order)
        places = self._places(order)
        return tf.scatter_nd(order[:, None], places, tf.shape(order, self._place_dtype))

    def _row(self, keys: tf.Tensor) -> tf.Tensor:
        """The rows of keys that this rank owns."""
        return keys // self._collective.size if self._collective.size > 1 else keys

    def _read(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.variable, rows)

    def _write(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        tf.raw_ops.ResourceScatterUpdate(
            resource=self.variable.handle, indices=rows, updates=values
        )

    def _route(self, ids: tf.Tensor, tables: slice) -> Route:
        ids, present, bad = self._checked(ids, tables)
        keys = tf.reshape(ids + tf.constant(self.table.offsets[tables], ids.dtype), [-1])
        none = tf.zeros([0], self._place_dtype)
        if self._collective.size == 1:
            rows, row_of = tf.unique(self._row(keys))
            count = tf.shape(keys)
            return Route(rows, row_of, count, count, self._places(keys), none, present, bad)

        key_of = None
        if self._compress:
            keys, key_of = tf.unique(keys)
        keys, order, sent = self._by_owner(keys)
        place_of = self._inverse(order)
        if key_of is not None:
            place_of, order = tf.gather(place_of, key_of), none
        keys, received = self._collective.alltoall(keys, sent, name=f"keys.{tables.start}")
        rows, row_of = tf.unique(self._row(keys))
        return Route(rows, row_of, sent, received, place_of, order, present, bad)

    def _lookup(self, route: Route, tables: slice) -> tuple[tf.Tensor, tf.Tensor]:
        values = self._read(route.rows)
        vectors = tf.gather(tf.cast(values, self._dtype), route.row_of)
        if self._collective.size > 1:
            vectors, _ = self._collective.alltoall(
                vectors, route.received, name=f"vectors.{tables.start}"
            )
            vectors = tf.gather(vectors, route.place_of)
        vectors = tf.reshape(vectors, [-1, tables.stop - tables.start, self.table.width])
        if self._bad_ids == "zero":
            vectors = tf.where(route.present, vectors, tf.zeros_like(vectors))
        return vectors, values

    def _sums_by_row(self, route: Route, gradient: tf.Tensor, tables: slice) -> tf.Tensor:
        """Sends vectors' gradients to the rows' owners; float32 [U, width] of this rank's rows."""
        gradient = tf.cast(gradient, self._dtype)
        if self._bad_ids == "zero":
            gradient = tf.where(route.present, gradient, tf.zeros_like(gradient))
        gradient = tf.reshape(gradient, [-1, self.table.width])
        if self._collective.size > 1:
            if self._compress:
                gradient = tf.math.unsorted_segment_sum(
                    tf.cast(gradient, tf.float32), route.place_of, tf.reduce_sum(route.sent)
                )
                gradient = tf.cast(gradient, self._dtype)
            else:
                gradient = tf.gather(gradient, route.order)
            gradient, _ = self._collective.alltoall(
                gradient, route.sent, name=f"gradients.{tables.start}"
            )
        return tf.math.unsorted_segment_sum(
            tf.cast(gradient, tf.float32), route.row_of, tf.size(route.rows)
        )

    def _checked(self, ids: tf.Tensor, tables: slice) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids that are safe to use, and `Route`'s `present` and `bad`."""
        ids = tf.cast(ids, self._key_dtype)
        last = tf.constant(self.table.vocab_sizes[tables], ids.dtype) - 1
        safe = tf.clip_by_value(ids, tf.zeros_like(last), last)
        inside = tf.equal(ids, safe)
        none_present, none_bad = tf.zeros([0], tf.bool), tf.constant(0)
        if self._bad_ids == "zero":
            return safe, inside[:, :, None], none_bad
        if self._bad_ids == "clip":
            return safe, none_present, none_bad
        return safe, none_present, tf.math.count_nonzero(~inside, dtype=tf.int32)
