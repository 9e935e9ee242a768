"""The operations of `dlrm_v3.hstu_op` in plain TensorFlow, which XLA can compile.

Same signatures, values and gradients.

Shapes: B requests, L rows, H heads with A values of a query or key and V of a value.
"""

from __future__ import annotations

import functools
import math

import tensorflow as tf

from dlrm_v3.hstu_op import HstuOps
from dlrm_v3.model.plain_attention import Gradient, attention, pad

COLUMN_STEP = 0x9E3779B9  # 2^32 divided by the golden ratio: columns lie far apart
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
"""A mix of a word's bits: x ^= x >> shift, x *= factor, for each (shift, factor) in turn."""


def gated_attention(
    projected: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    offsets: tf.Tensor,
    targets: tf.Tensor,
    *,
    heads: int,
    attention_dim: int,
    value_dim: int,
    scale: float,
    groups: int,
    epsilon: float,
    longest: int | None = None,
) -> tf.Tensor:
    """Computes what `HstuOps.gated_attention` does.

    Args:
        projected: [L, 2 * H * (V + A)], columns u, v, q and k, heads first in each.
        gamma: [H * V], scale of the norm.
        beta: [H * V], shift of the norm.
        offsets: int32 [B + 1], where each request's rows begin, and the end.
        targets: int32 [B], how many of a request's last rows are targets, which see the rows
            before all targets and themselves.
        heads: Number of heads.
        attention_dim: A.
        value_dim: V.
        scale: Factor on the attention's output.
        groups: Number of equal parts of a row that are normalised apart.
        epsilon: Least variance of the norm.
        longest: A bound of a request's rows, which XLA needs.

    Returns:
        [L, 3 * H * V]: SiLU(u), attention's output, and the product of SiLU(u) and its norm.
    """
    u, v, q, k = tf.split(projected, _sizes(heads, attention_dim, value_dim), axis=1)
    padding = pad(offsets, tf.shape(projected)[0], longest)
    lengths = (offsets[1:] - offsets[:-1])[:, None, None]
    history = lengths - targets[:, None, None]

    def seen(query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        earlier = (key < query) & (key < history)
        return (earlier | (key == query)) & (query < lengths)

    output = attention((q, k, v), padding, padding, seen, heads=heads, scale=scale, causal=True)
    u = tf.where(padding.valid[:, None], u, tf.zeros_like(u))  # rows of no request give zeros
    return _gated(u, output, gamma, beta, groups, epsilon)


def target_attention(
    projected: tf.Tensor,
    history: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    history_offsets: tf.Tensor,
    target_offsets: tf.Tensor,
    *,
    heads: int,
    attention_dim: int,
    value_dim: int,
    scale: float,
    groups: int,
    epsilon: float,
    longest: int | None = None,
    most_targets: int | None = None,
) -> tf.Tensor:
    """Computes what `HstuOps.target_attention` does: `gated_attention` of the targets alone.

    Args:
        projected: [C, 2 * H * (V + A)], the targets' rows.
        history: [Lh, H * (V + A)], columns v and k of the rows before the targets.
        gamma: [H * V], scale of the norm.
        beta: [H * V], shift of the norm.
        history_offsets: int32 [B + 1], where each request's history begins.
        target_offsets: int32 [B + 1], where each request's targets begin.
        heads: Number of heads.
        attention_dim: A.
        value_dim: V.
        scale: Factor on the attention's output.
        groups: Number of equal parts of a row that are normalised apart.
        epsilon: Least variance of the norm.
        longest: A bound of a request's history, which XLA needs.
        most_targets: A bound of a request's targets.

    Returns:
        [C, 3 * H * V], as `gated_attention` gives.
    """
    u, v, q, k = tf.split(projected, _sizes(heads, attention_dim, value_dim), axis=1)
    kept_v, kept_k = tf.split(history, [heads * value_dim, heads * attention_dim], axis=1)
    histories, targets = (
        (offsets[1:] - offsets[:-1])[:, None, None] for offsets in (history_offsets, target_offsets)
    )
    output = attention(
        (q, kept_k, kept_v),
        pad(target_offsets, tf.shape(projected)[0], most_targets),
        pad(history_offsets, tf.shape(history)[0], longest),
        lambda query, key: (key < histories) & (query < targets),
        heads=heads,
        scale=scale,
        causal=False,
    )
    # A target sees itself too.
    products = tf.reduce_sum(_by_head(q, heads) * _by_head(k, heads), axis=2, keepdims=True)
    weights = tf.nn.silu(products / tf.constant(math.sqrt(attention_dim), q.dtype))
    own = tf.cast(tf.reshape(weights * _by_head(v, heads), tf.shape(v)), tf.float32)
    return _gated(u, output + own * scale, gamma, beta, groups, epsilon)


def _sizes(heads: int, attention_dim: int, value_dim: int) -> list[int]:
    return [heads * size for size in (value_dim, value_dim, attention_dim, attention_dim)]


def _by_head(values: tf.Tensor, heads: int) -> tf.Tensor:
    """[L, H * D] -> [L, H, D]."""
    return tf.reshape(values, [-1, heads, values.shape[-1] // heads])


def _gated(
    u: tf.Tensor,
    output: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    groups: int,
    epsilon: float,
) -> tf.Tensor:
    """[L, H * V] and float32 [L, H * V] -> [L, 3 * H * V]."""
    split = [groups, output.shape[-1] // groups]
    norm = layer_norm(
        tf.reshape(output, [-1, *split]),
        tf.reshape(tf.cast(gamma, tf.float32), split),
        tf.reshape(tf.cast(beta, tf.float32), split),
        epsilon=epsilon,
        swish=False,
    )
    gate = tf.nn.silu(tf.cast(u, tf.float32))
    joined = tf.concat([gate, output, gate * tf.reshape(norm, tf.shape(output))], axis=1)
    return tf.cast(joined, u.dtype)


def layer_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *, epsilon: float, swish: bool
) -> tf.Tensor:
    """Normalises the last axis; sums are float32.

    Args:
        x: [L, W], or [L, G, W] with G norms for each row.
        gamma: Shape of a row of x: scale.
        beta: Shape of a row of x: shift.
        epsilon: Least variance.
        swish: Whether the result is x * sigmoid(norm) instead of the norm.

    Returns:
        Type and shape of x.
    """

    @tf.custom_gradient
    def norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def parts() -> tuple[tf.Tensor, ...]:
            values, scale = tf.cast(x, tf.float32), tf.cast(gamma, tf.float32)
            centred = values - tf.reduce_mean(values, axis=-1, keepdims=True)
            variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
            inverse = tf.math.rsqrt(variance + epsilon)
            unit = centred * inverse
            return values, scale, inverse, unit, unit * scale + tf.cast(beta, tf.float32)

        values, _, _, _, normal = parts()
        output = values * tf.sigmoid(normal) if swish else normal

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            values, scale, inverse, unit, normal = parts()
            above, direct = tf.cast(upstream, tf.float32), 0.0
            if swish:
                sigmoid = tf.sigmoid(normal)
                direct = above * sigmoid
                above = direct * values * (1 - sigmoid)
            of_unit = above * scale
            along = tf.reduce_mean(of_unit * unit, axis=-1, keepdims=True)
            level = tf.reduce_mean(of_unit, axis=-1, keepdims=True)
            of_x = inverse * (of_unit - level - unit * along) + direct
            of_gamma = tf.reduce_sum(above * unit, axis=0)
            of_beta = tf.reduce_sum(above, axis=0)
            return (
                tf.cast(of_x, x.dtype),
                tf.cast(of_gamma, gamma.dtype),
                tf.cast(of_beta, beta.dtype),
            )

        return tf.cast(output, x.dtype), gradient

    return norm(x, gamma, beta)


def dropout(x: tf.Tensor, keys: tf.Tensor, *, rate: float) -> tf.Tensor:
    """Drops values; which ones depends on nothing but the row's key and the column.

    With uint32 numbers and the mix of `ROUNDS`, row = mix(low half of the key ^ mix(high half)).
    A value stays if mix(row + column * `COLUMN_STEP`) is at least rate * 2^32.

    Args:
        x: [L, W].
        keys: int64 [L].
        rate: Share of the values that are dropped; the others are divided by 1 - rate.

    Returns:
        Type and shape of x.
    """

    def scaled(values: tf.Tensor) -> tf.Tensor:
        words = tf.bitcast(keys, tf.uint32)  # [L, 2], the low half first
        row = _mix(tf.bitwise.bitwise_xor(words[:, :1], _mix(words[:, 1:])))
        columns = tf.cast(tf.range(x.shape[-1]), tf.uint32) * tf.constant(COLUMN_STEP, tf.uint32)
        kept = _mix(row + columns) >= tf.constant(int(rate * 2**32), tf.uint32)
        factor = tf.cast(kept, tf.float32) * (1 / (1 - rate))
        return tf.cast(tf.cast(values, tf.float32) * factor, x.dtype)

    @tf.custom_gradient
    def drop(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        return scaled(x), scaled

    return drop(x)


def _mix(words: tf.Tensor) -> tf.Tensor:
    for shift, factor in ROUNDS:
        shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint32))
        words = tf.bitwise.bitwise_xor(words, shifted) * tf.constant(factor, tf.uint32)
    return words


def load(longest: int | None = None, most_targets: int | None = None) -> HstuOps:
    """Gathers the operations, in the form that the fused ones have.

    Args:
        longest: A bound of a request's rows, which XLA needs; None to find it in each batch.
        most_targets: A bound of a request's targets.
    """
    return HstuOps(
        gated_attention=functools.partial(gated_attention, longest=longest),
        target_attention=functools.partial(
            target_attention, longest=longest, most_targets=most_targets
        ),
        layer_norm=layer_norm,
        dropout=dropout,
    )
