"""What a batch's routes and lookups hold: the types that pass between the parts of a step.

Shapes: B local batch, T tables of the group, W width of a row, S width of a stored row (the row
and the optimizer's state), U distinct rows that this rank reads, K keys that it sends, R keys that
it receives, N ranks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf


class Located(Protocol):
    """What a route of any kind says of the rows that this rank reads."""

    @property
    def rows(self) -> tf.Tensor:
        """See `Route`."""

    @property
    def row_of(self) -> tf.Tensor:
        """See `Route`."""


class Route(NamedTuple):
    """How the keys of a group of tables travel to their owners, and vectors and gradients back.

    Attributes:
        rows: int32 or int64 [U], the distinct rows that this rank must read for all ranks, as its
            storage addresses them.
        row_of: int32 [R], for each key received, the position of its row in `rows`.
        sent: int32 [N], the number of keys sent to each rank; their sum is K.
        received: int32 [N], the number of keys received from each rank; their sum is R.
        position_of: int32 or int64 [B * T], for each vector, the position of its key among those
            sent.
        order: int32 or int64 [K], for each key sent, the position of its vector; empty with
            `compress`, where one key serves several vectors.
        present: bool [B, T, 1], False for ids outside their table; empty unless `bad_ids` is
            `zero`.
        bad: int32 [], the number of ids outside their table if `bad_ids` is `error`, else 0.
    """

    rows: tf.Tensor
    row_of: tf.Tensor
    sent: tf.Tensor
    received: tf.Tensor
    position_of: tf.Tensor
    order: tf.Tensor
    present: tf.Tensor
    bad: tf.Tensor

    @property
    def sent_keys(self) -> tf.Tensor:
        """The number of keys sent to each rank, int32 [N]: one for each vector."""
        return self.sent


class Lookup(NamedTuple):
    """The vectors of a batch and what the update of their rows needs, for each group of tables.

    Attributes:
        vectors: [B, T, W] in the exchange type.
        stored: float32 [U, S], the distinct rows and their state as they were read.
        routes: The routes that the vectors came by.
    """

    vectors: tuple[tf.Tensor, ...]
    stored: tuple[tf.Tensor, ...]
    routes: tuple[Route, ...]
