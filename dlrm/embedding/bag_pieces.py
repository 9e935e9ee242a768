"""Cuts the bags of a batch into pieces: what one owner sends back as one vector.

A piece is a run of keys of one owner. For a bag that is pooled at the owners of its rows, it holds
the bag's keys there; for one that is pooled after the exchange, it is a single distinct key of the
batch, which may belong to many bags. So one exchange serves both, table by table.

Keys are not negative; the first key k of each piece travels as -1 - k. Hence owners learn where
pieces begin without further bytes.

Works on integers alone, independent of tables and of the exchange. Shapes: V ids of the batch, Q
bags, K keys sent, P pieces sent, E pairs of a piece and a bag that it is part of, N ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from dlrm.distributed import sharding
from dlrm.embedding.partition import by_owner, distinct, inverse, position_dtype, positions


class Pieces(NamedTuple):
    """The keys of a batch in the order of their owners, and what becomes of their vectors.

    Attributes:
        keys: [K], the first of each piece as -1 - key.
        weights: float32 [K], of the keys; [0] without weights.
        keys_sent: int32 [N], the number of keys sent to each rank.
        sent: int32 [N], the number of pieces sent to each rank.
        piece: int32 or int64 [E], the piece of each pair; empty if pair i has piece i.
        bag: int32 or int64 [E], its bag.
        factor: float32 [E], the factor on the piece in the bag; [0] if all are 1.
    """

    keys: tf.Tensor
    weights: tf.Tensor
    keys_sent: tf.Tensor
    sent: tf.Tensor
    piece: tf.Tensor
    bag: tf.Tensor
    factor: tf.Tensor


def bags_of_ids(lengths: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The bag of each id: bag q as often as `lengths[q]` says.

    Args:
        lengths: int32 [Q].
        count: int32 [], the sum of the lengths.

    Returns:
        int32 or int64 [V], as positions are.
    """
    dtype = position_dtype()
    ends = tf.cumsum(tf.cast(lengths, dtype))  # [Q]
    # Each bag's end moves the ids from there on to the next bag; empty bags end in one place.
    steps = tf.scatter_nd(ends[:, None], tf.ones_like(ends), tf.cast(count, dtype)[None] + 1)
    return tf.cumsum(steps)[:-1]


def sum_of_parts(values: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """The sums of consecutive parts of `values` [n], whose sizes are int32 [N]; int32 [N]."""
    sums = tf.concat([[0], tf.cumsum(tf.cast(values, tf.int32))], 0)  # [n + 1]
    ends = tf.gather(sums, tf.cumsum(sizes))  # [N]
    return ends - tf.concat([[0], ends[:-1]], 0)


def cut(keys: tf.Tensor, bags: tf.Tensor, weights: tf.Tensor, size: int) -> Pieces:
    """Cuts bags that are pooled at the owners of their rows.

    Args:
        keys: [V], those of one bag side by side.
        bags: int32 or int64 [V], the bag of each.
        weights: float32 [V], or [0].
        size: N.
    """
    keys, order, _, keys_sent = by_owner(keys, size)  # keeps the keys of a bag side by side
    bags = tf.gather(bags, order)  # [K]
    starts = _starts(bags, keys, size)  # [K]
    return Pieces(
        tf.where(starts, -1 - keys, keys),
        _taken(weights, order),
        keys_sent,
        sum_of_parts(starts, keys_sent),
        tf.zeros([0], position_dtype()),
        tf.boolean_mask(bags, starts),
        tf.zeros([0]),
    )


def cut_distinct(
    keys: tf.Tensor, bags: tf.Tensor, weights: tf.Tensor, at_owner: tf.Tensor, size: int
) -> Pieces:
    """Cuts bags of which some are pooled after the exchange.

    Args:
        keys: [V], those of one bag side by side.
        bags: int32 or int64 [V], the bag of each.
        weights: float32 [V], or [0].
        at_owner: bool [V], whether the bag is pooled at the owners of its rows.
        size: N.
    """
    weighted = weights.shape[0] != 0
    pooled, later = _positions_of(at_owner), _positions_of(~at_owner)  # they share the ids
    singles, single_of = distinct(tf.gather(keys, later))
    # Distinct keys count as bags of their own, of numbers below 0.
    marks = tf.concat([tf.gather(bags, pooled), -1 - positions(singles)], 0)  # [K]
    ones = tf.ones_like(singles, tf.float32)
    sent_weights = tf.concat([tf.gather(weights, pooled), ones], 0) if weighted else weights
    pieces = cut(tf.concat([tf.gather(keys, pooled), singles], 0), marks, sent_weights, size)
    of_mark = pieces.bag  # [P], the mark of each piece
    sums = _positions_of(of_mark >= 0)
    # Where the vector of each distinct key arrives.
    alone = _positions_of(of_mark < 0)
    arrival = tf.gather(alone, inverse(-1 - tf.gather(of_mark, alone)))  # [distinct keys]
    factor = weights
    if weighted:
        factor = tf.concat([tf.ones_like(sums, tf.float32), tf.gather(weights, later)], 0)
    return pieces._replace(
        piece=tf.concat([sums, tf.gather(arrival, single_of)], 0),
        bag=tf.concat([tf.gather(of_mark, sums), tf.gather(bags, later)], 0),
        factor=factor,
    )


def received_pieces(
    keys: tf.Tensor, keys_received: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Undoes on the owner what `cut` did to the keys.

    Args:
        keys: [R], as received.
        keys_received: int32 [N], the number of keys of each rank.

    Returns:
        The keys [R]; the piece of each, int32 or int64 [R]; the number of pieces of each rank,
        int32 [N].
    """
    starts = keys < 0
    piece_of = tf.cumsum(tf.cast(starts, position_dtype())) - 1
    return tf.where(starts, -1 - keys, keys), piece_of, sum_of_parts(starts, keys_received)


def _starts(bags: tf.Tensor, keys: tf.Tensor, size: int) -> tf.Tensor:
    """Whether a key is the first of its piece: another bag or owner than the key before it."""
    owners = sharding.owner_of(keys, size)
    new = (bags[1:] != bags[:-1]) | (owners[1:] != owners[:-1])
    return tf.concat([tf.ones_like(bags[:1], tf.bool), new], 0)


def _positions_of(mask: tf.Tensor) -> tf.Tensor:
    """The positions at which a mask [n] is true."""
    return tf.cast(tf.where(mask)[:, 0], position_dtype())


def _taken(weights: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    return weights if weights.shape[0] == 0 else tf.gather(weights, order)
