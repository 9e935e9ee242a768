"""Pointwise attention over jagged sequences in plain TensorFlow, in blocks of queries.

Nothing of a block is kept for the gradient, which computes it again: memory grows with the length,
not with its square. XLA can compile it, given a bound of the lengths.

Shapes: B requests, L rows, H heads with A values of a query or key and V of a value; N rows of a
padded sequence, S those of a block.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import tensorflow as tf

QUERY_BLOCK = 64  # rows of a block of queries, or fewer where no sequence has as many
ALIGNMENT = 8  # blocks are multiples of this

Gradient = Callable[..., Any]


class Padding(NamedTuple):
    """Where the rows of jagged sequences lie when each is padded to N rows.

    Attributes:
        block: S, the rows of a block; a number if it is known ahead, else a scalar.
        length: N, a multiple of S; a number or a scalar.
        rows: int32 [B, N], the row at each padded place; some other row where there is none.
        places: int32 [L], the padded place of each row, of B * N.
        valid: bool [L], false for the rows behind the last sequence.
    """

    block: Any
    length: Any
    rows: tf.Tensor
    places: tf.Tensor
    valid: tf.Tensor


def pad(offsets: tf.Tensor, rows: Any, longest: Any = None) -> Padding:
    """Lays L rows out; XLA needs to know the longest sequence, or a bound of it, ahead."""
    if longest is None:  # one row at least, also for a batch without requests
        longest = tf.reduce_max(tf.pad(offsets[1:] - offsets[:-1], [[0, 1]], constant_values=1))
    smallest = tf.minimum if tf.is_tensor(longest) else min
    block = smallest(QUERY_BLOCK, -(-longest // ALIGNMENT) * ALIGNMENT)
    length = -(-longest // block) * block
    row = tf.range(rows)
    valid = row < offsets[-1]
    # Requests without rows share their offset with the next; the last of them has the row.
    request = tf.searchsorted(offsets, row, side="right") - 1
    request = tf.where(valid, request, tf.zeros_like(request))
    places = tf.where(valid, request * length + row - tf.gather(offsets, request), 0)
    index = tf.minimum(offsets[:-1, None] + tf.range(length), tf.maximum(rows - 1, 0))
    return Padding(block, length, index, places, valid)


def _padded(values: tf.Tensor, padding: Padding, heads: int) -> tf.Tensor:
    """Pads sequences: [L, H * D] -> [B, H, N, D]."""
    # Without rows there would be none for the padding to repeat.
    none = tf.cast(tf.equal(tf.shape(values)[0], 0), tf.int32)
    values = tf.pad(values, [[0, none], [0, 0]])
    rows = tf.gather(values, padding.rows)  # [B, N, H * D]
    shape = [-1, padding.length, heads, values.shape[-1] // heads]
    return tf.transpose(tf.reshape(rows, shape), [0, 2, 1, 3])


def _jagged(padded: tf.Tensor, padding: Padding) -> tf.Tensor:
    """Takes sequences back: [B * N, D] -> [L, D]; rows that belong to none are zero."""
    rows = tf.gather(padded, padding.places)
    return tf.where(padding.valid[:, None], rows, tf.zeros_like(rows))


def attention(
    rows: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    queries: Padding,
    keys: Padding,
    seen: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    heads: int,
    scale: float,
    causal: bool,
) -> tf.Tensor:
    """Sums seen values, each weighed by the SiLU of its key's product with the query.

    Args:
        rows: [Lq, H * A], [Lk, H * A], [Lk, H * V]: queries, keys and values.
        queries: Lays out the queries' rows.
        keys: Lays out those of the keys and values.
        seen: Says for positions of queries [S, 1] and of keys [1, n] who sees whom, [B, S, n].
        heads: Number of heads.
        scale: Factor on the result.
        causal: Whether no query sees a key of a later position; those blocks are then skipped.

    Returns:
        float32 [Lq, H * V].
    """

    @tf.custom_gradient
    def attend(*rows: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        dtype = rows[0].dtype
        # Or else an eager tape keeps every block, which the gradient below has no use for.
        rows = tuple(tf.stop_gradient(x) for x in rows)
        alpha = tf.constant(1 / math.sqrt(rows[0].shape[-1] // heads), dtype)
        q, k, v = (_padded(x, pad, heads) for x, pad in zip(rows, (queries, keys, keys)))
        size = queries.block
        count = queries.length // size

        def block(index: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
            """How many keys a block of queries may see, its products with them, and the mask."""
            skips = causal and tf.is_tensor(keys.length)  # XLA needs a number
            end = (index + 1) * size if skips else keys.length
            first = index * size
            mask = seen((first + tf.range(size))[:, None], tf.range(end)[None])
            products = tf.matmul(_block_of(q, index, size), k[:, :, :end], transpose_b=True) * alpha
            return end, products, tf.cast(mask, dtype)[:, None]  # [B, H, S, end], [B, 1, S, end]

        def forward(index: tf.Tensor, outputs: tf.TensorArray) -> tuple[Any, ...]:
            end, products, mask = block(index)
            output = tf.matmul(tf.nn.silu(products) * mask, v[:, :, :end])
            return index + 1, outputs.write(index, tf.cast(output, tf.float32) * scale)

        def backward(index: tf.Tensor, *state: Any) -> tuple[Any, ...]:
            dq, dk, dv, upstream = state
            end, products, mask = block(index)
            sigmoid = tf.sigmoid(products)
            weights = products * sigmoid * mask
            slope = sigmoid * (1 + products * (1 - sigmoid)) * mask * alpha
            above = _block_of(upstream, index, size)  # [B, H, S, V]
            slope *= tf.matmul(above, v[:, :, :end], transpose_b=True)
            dq = dq.write(index, tf.matmul(slope, k[:, :, :end]))
            rest = [[0, 0], [0, 0], [0, keys.length - end], [0, 0]]
            dk += tf.pad(tf.matmul(slope, _block_of(q, index, size), transpose_a=True), rest)
            dv += tf.pad(tf.matmul(weights, above, transpose_a=True), rest)
            return index + 1, dq, dk, dv, upstream

        def loop(body: Callable[..., Any], *state: Any) -> Any:
            state = (tf.constant(0), *state)
            # One block at a time: several would need as many times the memory.
            return tf.while_loop(
                lambda index, *_: index < count, body, state, parallel_iterations=1
            )[1:]

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            above = _padded(tf.cast(upstream * scale, dtype), queries, heads)
            dq = tf.TensorArray(dtype, count)
            dq, dk, dv, _ = loop(backward, dq, tf.zeros_like(k), tf.zeros_like(v), above)
            both = [
                tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, row.shape[-1]])
                for x, row in ((dk, rows[1]), (dv, rows[2]))
            ]
            gradients = [_joined(dq, rows[0].shape[-1]), *both]
            return [_jagged(x, pad) for x, pad in zip(gradients, (queries, keys, keys))]

        (outputs,) = loop(forward, tf.TensorArray(tf.float32, count))
        return _jagged(_joined(outputs, rows[2].shape[-1]), queries), gradient

    return attend(*rows)


def _block_of(values: tf.Tensor, index: tf.Tensor, size: Any) -> tf.Tensor:
    """Cuts block `index` of positions out of [B, H, N, D]: [B, H, S, D]."""
    block = tf.slice(values, tf.stack([0, 0, index * size, 0]), tf.stack([-1, -1, size, -1]))
    return tf.ensure_shape(block, [*values.shape[:2], None, values.shape[3]])


def _joined(blocks: tf.TensorArray, width: int) -> tf.Tensor:
    """Joins blocks of positions, each [B, H, S, D]: [B * N, H * D]."""
    return tf.reshape(tf.transpose(blocks.stack(), [1, 0, 3, 2, 4]), [-1, width])
