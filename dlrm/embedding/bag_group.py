"""One group of tables that hold bags of ids: routing, lookup with pooling, and update.

A bag's vector is a sum over its ids. Owners of rows add up what they have of it, or send distinct
rows where that takes fewer bytes (`pooling_cost` decides it for each table, `bag_pieces` cuts the
bags accordingly); the rank of the sample adds up what arrives. Gradients take the same way back.
Rows are found, and updated, as for tables of one id, by a `TableGroup`; the parts are its parts.

Shapes: B local batch, T tables of the group, Q = B * T bags (bag b * T + t is sample b's of table
t), V ids, P pieces sent, E pairs of a piece and a bag, R keys and P' pieces received, W width of a
row, S width of a stored row, U distinct rows that this rank reads, N ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding.bag_pieces import Pieces, bags_of_ids, cut, cut_distinct, received_pieces
from dlrm.embedding.partition import position_dtype
from dlrm.embedding.pooling_cost import pooled_at_owner
from dlrm.embedding.row_storage import RowStorage
from dlrm.embedding.row_sums import sum_by_row
from dlrm.embedding.table_group import TableGroup
from dlrm.formats.bags import BagLayout, Bags


class BagRoute(NamedTuple):
    """How the keys of bags travel to their owners, and vectors and gradients back.

    Attributes:
        rows: As in `Route`.
        row_of: As in `Route`.
        piece_of: int32 or int64 [R], for each key received, its piece.
        weight_of: float32 [R], its weight; [0] without weights.
        sent_keys: int32 [N], the number of keys sent to each rank.
        sent: int32 [N], the number of pieces sent to each rank; their sum is P.
        received: int32 [N], the number of pieces received from each rank; their sum is P'.
        piece: As in `Pieces`.
        bag: As in `Pieces`.
        factor: As in `Pieces`.
        scale: float32 [Q], the factor on each bag's sum.
        bad: As in `Route`.
    """

    rows: tf.Tensor
    row_of: tf.Tensor
    piece_of: tf.Tensor
    weight_of: tf.Tensor
    sent_keys: tf.Tensor
    sent: tf.Tensor
    received: tf.Tensor
    piece: tf.Tensor
    bag: tf.Tensor
    factor: tf.Tensor
    scale: tf.Tensor
    bad: tf.Tensor


class AddressedBags(NamedTuple):
    """Bags in the order of their owners; attributes as in `BagRoute` and `Pieces`."""

    pieces: Pieces
    scale: tf.Tensor
    bad: tf.Tensor


class BagGroup:
    """Consecutive tables, of which some hold bags, that are looked up independently of others.

    Args:
        group: The tables, whose rows it finds and updates; it exchanges nothing, and reads and
            sums in float32.
        storage: This rank's rows and their state.
        collective: The ranks that share the tables.
        layout: How all tables are pooled.
        compress: See `ShardedEmbedding`.
        bad_ids: See `ShardedEmbedding`. With `zero`, an id outside its table adds nothing to its
            bag, though it counts in its mean.
        exchange_dtype: See `ShardedEmbedding`. Sums are taken in float32.

    Attributes:
        tables: The tables of the group.
    """

    def __init__(
        self,
        group: TableGroup,
        storage: RowStorage,
        collective: Collective,
        layout: BagLayout,
        *,
        compress: bool,
        bad_ids: str,
        exchange_dtype: str,
    ) -> None:
        self.tables = group.tables
        self._group = group
        self._storage = storage
        self._layout = layout
        self._collective = collective
        self._compress = compress and collective.size > 1
        self._bad_ids = bad_ids
        self._dtype = exchange_dtype
        self._vocab_sizes = storage.layout.table.vocab_sizes[self.tables]
        self._width = storage.layout.table.width

    def address(self, bags: Bags) -> AddressedBags:
        """Makes keys of ids, and cuts their bags into pieces.

        Args:
            bags: The bags of this group's tables.
        """
        ids, lengths, weights = bags
        batch = lengths.shape[1]
        assert batch is not None, "the number of samples is static"
        of_table = bags_of_ids(tf.reshape(lengths, [-1]), tf.size(ids))  # [V], t * B + b
        table = of_table // batch  # [V]
        bag = of_table % batch * lengths.shape[0] + table  # [V]
        ids, inside, bad = self._checked(ids, table)
        if inside is not None:
            table, bag = tf.boolean_mask(table, inside), tf.boolean_mask(bag, inside)
            ids = tf.boolean_mask(ids, inside)
            weights = tf.boolean_mask(weights, inside) if self._layout.weights else weights
        offsets = self._storage.layout.table.offsets[self.tables]
        keys = ids + tf.gather(tf.constant(offsets, ids.dtype), table)  # [V]
        return AddressedBags(
            self._pieces(keys, bag, table, weights, batch), self._scale(lengths), bad
        )

    def exchange_keys(self, addressed: AddressedBags) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sends keys and weights to the owners.

        Returns:
            Those received, [R] each, and the number of keys of each rank, int32 [N].
        """
        pieces = addressed.pieces
        keys, received = self._exchange(pieces.keys, pieces.keys_sent, "keys")
        weights = pieces.weights
        if self._layout.weights:
            weights, _ = self._exchange(weights, pieces.keys_sent, "weights")
        return keys, weights, received

    def locate(
        self, addressed: AddressedBags, keys: tf.Tensor, weights: tf.Tensor, received: tf.Tensor
    ) -> BagRoute:
        """Finds the distinct rows of the keys received, and so completes the route."""
        pieces = addressed.pieces
        keys, piece_of, received = self._received(pieces, keys, received)
        rows, row_of = self._group.distinct_rows(keys)
        return BagRoute(
            rows,
            row_of,
            piece_of,
            weights,
            pieces.keys_sent,
            pieces.sent,
            received,
            pieces.piece,
            pieces.bag,
            pieces.factor,
            addressed.scale,
            addressed.bad,
        )

    def read(self, route: BagRoute) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads the rows. Returns the sum of each piece received [P', W], and the rows [U, S]."""
        vectors, stored = self._group.read(route)  # float32 [R, W]
        return self._summed(vectors, route.piece_of, route.weight_of, route.received), stored

    def fetch(self, addressed: AddressedBags) -> tf.Tensor:
        """Exchanges keys and vectors [B, T, W]; each key's row is read where it is asked for."""
        pieces = addressed.pieces
        keys, weights, received = self.exchange_keys(addressed)
        keys, piece_of, received = self._received(pieces, keys, received)
        vectors = self._storage.layout.rows_of(self._storage.fetch(keys))  # [R, W]
        sums = self._summed(vectors, piece_of, weights, received)  # [P', W]
        sums, _ = self._exchange(sums, received, "vectors")  # [P, W]
        return self._pooled(sums, pieces.piece, pieces.bag, pieces.factor, addressed.scale)

    def exchange_vectors(self, route: BagRoute, vectors: tf.Tensor) -> tf.Tensor:
        """Sends the sums of pieces [P', W] to the ranks that asked for them; [P, W]."""
        return self._exchange(vectors, route.received, "vectors")[0]

    def arrange(self, route: BagRoute, vectors: tf.Tensor) -> tf.Tensor:
        """Adds up the pieces [P, W] of each bag; [B, T, W]."""
        return self._pooled(vectors, route.piece, route.bag, route.factor, route.scale)

    def collect(self, route: BagRoute, gradient: tf.Tensor) -> tf.Tensor:
        """Turns gradients of vectors [B, T, W] into those of the pieces sent; [P, W]."""
        gradient = tf.reshape(tf.cast(gradient, tf.float32), [-1, self._width])  # [Q, W]
        gradient *= route.scale[:, None]
        if self._collective.size > 1:
            gradient = _weighted(tf.gather(gradient, route.bag), route.factor)  # [E, W]
            if self._compress:
                gradient = sum_by_row(gradient, route.piece, tf.reduce_sum(route.sent))
        return tf.cast(gradient, self._dtype)

    def exchange_gradients(self, route: BagRoute, gradient: tf.Tensor) -> tf.Tensor:
        """Sends the gradients of pieces [P, W] to the owners of their rows; [P', W]."""
        return self._exchange(gradient, route.sent, "gradients")[0]

    def squares(self, route: BagRoute, gradient: tf.Tensor) -> tf.Tensor:
        """See `TableGroup.squares`; the gradients are those of pieces, [P', W]."""
        return self._group.squares(route, self._of_keys(route, gradient))

    def shared_gradients(self, route: BagRoute, gradient: tf.Tensor) -> tf.Tensor:
        """See `TableGroup.shared_gradients`; the gradients are those of pieces, [P', W]."""
        return self._group.shared_gradients(route, self._of_keys(route, gradient))

    def update(self, route: BagRoute, stored: tf.Tensor, gradient: tf.Tensor, *others: Any) -> None:
        """See `TableGroup.update`; the gradients are those of pieces, [P', W]."""
        self._group.update(route, stored, self._of_keys(route, gradient), *others)

    def _of_keys(self, route: BagRoute, gradient: tf.Tensor) -> tf.Tensor:
        """The gradients of the keys received [R, W], from those of their pieces [P', W]."""
        return _weighted(tf.gather(gradient, route.piece_of), route.weight_of)

    def _summed(
        self, vectors: tf.Tensor, piece_of: tf.Tensor, weights: tf.Tensor, received: tf.Tensor
    ) -> tf.Tensor:
        """Adds up the vectors [R, W] of each piece received; [P', W]."""
        sums = sum_by_row(_weighted(vectors, weights), piece_of, tf.reduce_sum(received))
        return tf.cast(sums, self._dtype) if self._collective.size > 1 else sums

    def _pooled(
        self,
        vectors: tf.Tensor,
        piece: tf.Tensor,
        bag: tf.Tensor,
        factor: tf.Tensor,
        scale: tf.Tensor,
    ) -> tf.Tensor:
        """Adds up the pieces [P, W] of each bag; [B, T, W]."""
        if self._collective.size > 1:
            if self._compress:
                vectors = tf.gather(vectors, piece)  # [E, W]
            vectors = sum_by_row(_weighted(vectors, factor), bag, tf.size(scale))  # [Q, W]
        vectors = tf.cast(vectors * scale[:, None], self._dtype)
        tables = len(self._vocab_sizes)
        return tf.reshape(vectors, [scale.shape[0] // tables, tables, self._width])

    def _pieces(
        self, keys: tf.Tensor, bag: tf.Tensor, table: tf.Tensor, weights: tf.Tensor, batch: int
    ) -> Pieces:
        """Cuts the bags into pieces; those of a rank alone are its bags, the empty ones too."""
        size = self._collective.size
        if size == 1:
            none, bags = tf.zeros([0], position_dtype()), batch * len(self._vocab_sizes)
            return Pieces(
                keys, weights, tf.shape(keys), tf.constant([bags]), none, bag, tf.zeros([0])
            )
        at_owner = pooled_at_owner(
            self._layout.of_tables(self.tables),
            self._vocab_sizes,
            compress=self._compress,
            ranks=size,
            local_batch=batch,
            key_bytes=keys.dtype.size,
            vector_bytes=self._width * tf.as_dtype(self._dtype).size,
        )
        if all(at_owner):
            pieces = cut(keys, bag, weights, size)
            return pieces._replace(piece=tf.range(tf.size(pieces.bag, position_dtype())))
        return cut_distinct(keys, bag, weights, tf.gather(tf.constant(at_owner), table), size)

    def _received(
        self, pieces: Pieces, keys: tf.Tensor, received: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """See `received_pieces`; a rank alone has its own."""
        if self._collective.size == 1:
            return keys, pieces.bag, pieces.sent
        return received_pieces(keys, received)

    def _scale(self, lengths: tf.Tensor) -> tf.Tensor:
        """The factor on each bag's sum, float32 [Q]; an empty bag's sum is 0 whatever it is."""
        means = np.array(self._layout.pooling[self.tables]) == "mean"
        counts = tf.cast(tf.maximum(tf.transpose(lengths), 1), tf.float32)  # [B, T]
        return tf.reshape(tf.where(tf.constant(means), 1.0 / counts, tf.ones_like(counts)), [-1])

    def _exchange(
        self, tensor: tf.Tensor, splits: tf.Tensor, what: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return self._collective.alltoall(tensor, splits, name=f"{what}.{self.tables.start}")

    def _checked(
        self, ids: tf.Tensor, table: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
        """Ids [V] that are safe to use; which of them to keep, None for all; and `bad`."""
        ids = tf.cast(ids, self._storage.key_dtype)
        sizes = tf.gather(tf.constant(self._vocab_sizes, ids.dtype), table)  # [V]
        if self._bad_ids == "modulo":
            return tf.math.floormod(ids, sizes), None, tf.constant(0)
        safe = tf.minimum(tf.maximum(ids, 0), sizes - 1)
        inside = tf.equal(ids, safe)
        if self._bad_ids == "zero":
            return safe, inside, tf.constant(0)
        if self._bad_ids == "clip":
            return safe, None, tf.constant(0)
        return safe, None, tf.math.count_nonzero(~inside, dtype=tf.int32)


def _weighted(vectors: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Vectors [n, W] times weights [n], in float32; as they are without weights [0]."""
    if weights.shape[0] == 0:
        return vectors
    return tf.cast(vectors, tf.float32) * weights[:, None]
