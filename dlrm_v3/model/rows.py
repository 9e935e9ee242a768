"""The rows of a batch as the layers see them: where they lie, how old they are, their keys.

Shapes: B requests with n tokens, L = n + B rows of W values.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf

from dlrm.formats import splitmix64
from dlrm_v3.model.inputs import ModelInputs
from dlrm_v3.model.plain_attention import Gradient


class Rows(NamedTuple):
    """The rows of a batch: those of the tokens, and one for the user before each request's.

    Attributes:
        offsets: int32 [B + 1], where each request's rows begin, and the end.
        of_tokens: int32 [n].
        of_users: int32 [B].
        positions: int32 [n], the tokens' indices in their requests.
        histories: int32 [B], the lengths of the histories.
    """

    offsets: tf.Tensor
    of_tokens: tf.Tensor
    of_users: tf.Tensor
    positions: tf.Tensor
    histories: tf.Tensor


def rows_of(inputs: ModelInputs) -> Rows:
    """Places the rows of a batch: those of a request lie one behind the other, the user's first."""
    requests = tf.range(tf.shape(inputs.users)[0])
    tokens = tf.range(tf.shape(inputs.items)[0])
    begins = inputs.offsets[:-1]
    return Rows(
        offsets=inputs.offsets + tf.range(tf.shape(inputs.offsets)[0]),
        of_tokens=tokens + inputs.requests + 1,
        of_users=begins + requests,
        positions=tokens - tf.gather(begins, inputs.requests),
        histories=inputs.offsets[1:] - begins - inputs.targets,
    )


def check_bounds(inputs: ModelInputs, rows: int, targets: int) -> list[tf.Operation]:
    """Makes operations that fail for requests of more rows or candidates."""
    found = {"rows": inputs.offsets[1:] - inputs.offsets[:-1] + 1, "candidates": inputs.targets}
    return [
        tf.debugging.assert_less_equal(
            found[what],
            most,
            f"compiled for requests of up to {most} {what}, found more: leave --xla out",
        )
        for what, most in (("rows", rows), ("candidates", targets))
    ]


def row_keys(dropout_key: Any, inputs: ModelInputs, rows: Rows) -> tf.Tensor:
    """Mixes a key for each row from step, user and position in the sequence: uint64 [L]."""
    step = tf.bitcast(tf.cast(dropout_key, tf.int64), tf.uint64)
    users = _mix(_mix(tf.cast(inputs.users, tf.uint64)) + step)  # the user's row has position 0
    positions = tf.cast(rows.positions + 1, tf.uint64) * tf.constant(splitmix64.GAMMA, tf.uint64)
    tokens = tf.gather(users, inputs.requests) + positions
    return _mix(place_rows(tokens, rows.of_tokens, users, rows.of_users))


def layer_keys(keys: tf.Tensor, layer: int) -> tf.Tensor:
    """Mixes the rows' keys with a layer's number: uint64 [L] -> int64 [L]."""
    step = tf.constant((layer + 1) * splitmix64.GAMMA % 2**64, tf.uint64)
    return tf.bitcast(_mix(keys + step), tf.int64)


def _mix(words: tf.Tensor) -> tf.Tensor:
    """Applies the output function of SplitMix64 to uint64 words."""
    for shift, factor in splitmix64.ROUNDS:
        shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint64))
        words = tf.bitwise.bitwise_xor(words, shifted)
        if factor != 1:
            words *= tf.constant(factor, tf.uint64)
    return words


def take_rows(table: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Copies rows: [R, W], [L] -> [L, W]. The table's gradient is a whole tensor."""

    @tf.custom_gradient
    def take(table: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # On CPUs a segment sum of as many rows takes twice as long.
            return tf.scatter_nd(rows[:, None], upstream, tf.shape(table))

        return tf.gather(table, rows), gradient

    return take(table)


def place_rows(
    first: tf.Tensor, first_rows: tf.Tensor, second: tf.Tensor, second_rows: tf.Tensor
) -> tf.Tensor:
    """Puts the rows of two tensors at their places, which are all places of the result.

    Args:
        first: [n, ...].
        first_rows: int32 [n].
        second: [B, ...].
        second_rows: int32 [B].

    Returns:
        [n + B, ...].
    """
    sources = _inverse(first_rows, second_rows)

    @tf.custom_gradient
    def put(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.gather(upstream, first_rows), tf.gather(upstream, second_rows)

        return tf.gather(tf.concat([first, second], axis=0), sources), gradient

    return put(first, second)


def split_rows(
    x: tf.Tensor, first_rows: tf.Tensor, second_rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Undoes `place_rows`: [n + B, ...] -> [n, ...], [B, ...]."""
    sources = _inverse(first_rows, second_rows)

    @tf.custom_gradient
    def split(x: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Gradient]:
        def gradient(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.concat([first, second], axis=0), sources)

        return (tf.gather(x, first_rows), tf.gather(x, second_rows)), gradient

    return split(x)


def _inverse(first_rows: tf.Tensor, second_rows: tf.Tensor) -> tf.Tensor:
    """Finds what lies at each place: [n], [B] -> int32 [n + B]."""
    places = tf.concat([first_rows, second_rows], axis=0)
    count = tf.shape(places)
    return tf.scatter_nd(places[:, None], tf.range(count[0]), count)


def time_bucket(seconds: tf.Tensor, buckets: int) -> tf.Tensor:
    """Floors the root of the minutes, up to `buckets`: int64 [L] -> int32 [L]."""
    minutes = tf.clip_by_value(seconds // 60, 0, buckets**2)
    # Half a minute more changes no floor of the root, and no rounding of it either.
    root = tf.sqrt(tf.cast(minutes, tf.float32) + 0.5)
    return tf.minimum(tf.cast(root, tf.int32), buckets)


def time_of_day_and_week(seconds: tf.Tensor) -> tf.Tensor:
    """Places the hour on the circle of a day, and the day on that of a week.

    Args:
        seconds: int64 [L].

    Returns:
        float32 [L, 4]: cosine and sine of the hour, then of the day.
    """
    columns = []
    for unit, period in ((3600, 24), (24 * 3600, 7)):
        share = tf.cast((seconds // unit) % period, tf.float32) / period
        columns += [tf.cos(2 * math.pi * share), tf.sin(2 * math.pi * share)]
    return tf.stack(columns, axis=1)
