"""The operations of HSTU, fused: an alternative to `dlrm_v3.model.plain_ops`, with the same values.

`make hstu_op` builds them. They work on tensors alone, independent of models and training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from dlrm.op_library import load_operations, once

BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "hstu_op"
LIBRARY = "hstu.so"
REMEDY = "build them with `make hstu_op`, or leave the fused operations out"


class HstuOps(NamedTuple):
    """The operations, for float32, float16 and bfloat16; sums are float32.

    Sequences of uneven length lie one behind the other, L rows in all: request b has the rows
    [offsets[b], offsets[b + 1]), and its last targets[b] rows are its targets. A row of the history
    attends itself and the rows before it; a target attends the whole history and itself. Rows
    behind the last offset give zeros and get zero gradients. H heads have A values of a query and a
    key, and V of a value. gamma and beta may have any floating type; float32 is used.

    Attributes:
        gated_attention: `(projected [L, 2 H (V + A)], gamma [H V], beta [H V], offsets int32
            [B + 1], targets int32 [B], *, heads, attention_dim, value_dim, scale, groups,
            epsilon)`. projected holds [u: H V | v: H V | q: H A | k: H A], each in order of heads.
            It returns [L, 3 H V]: silu(u), then av, the sum over the attended rows of
            `scale * silu(q . k / sqrt(A)) * v`, then silu(u) * layer_norm(av), which normalises
            each of `groups` equal parts of av by itself.
        target_attention: `(projected [C, 2 H (V + A)], history [rows, H (V + A)], gamma, beta,
            history_offsets int32 [B + 1], target_offsets int32 [B + 1], *, ...)` as above: the same
            for targets alone, whose requests' histories are given as [v | k].
        layer_norm: `(x [L, W], gamma [W], beta [W], *, epsilon, swish)`. It returns
            layer_norm(x), or with swish `x * sigmoid(layer_norm(x))`.
        dropout: `(x [L, W], keys int64 [L], *, rate)`. It returns `x / (1 - rate)` where
            `hash(key, column) >= int(rate * 2**32)`, and 0 elsewhere. With arithmetic of uint32 and
            mix(x) = {x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16},
            the hash is `mix(mix(low ^ mix(high)) + column * 0x9e3779b9)`, where low and high are
            the halves of the row's key.
    """

    gated_attention: Callable[..., tf.Tensor]
    target_attention: Callable[..., tf.Tensor]
    layer_norm: Callable[..., tf.Tensor]
    dropout: Callable[..., tf.Tensor]


@once
def load(build: Path = BUILD) -> HstuOps:
    """Loads the operations.

    Args:
        build: The folder that `make hstu_op` writes to, with a subfolder for each version of
            TensorFlow.

    Returns:
        The operations.

    Raises:
        OSError: They are not built, or built for another TensorFlow only.
    """
    operations = load_operations("HSTU's fused ops", build, LIBRARY, REMEDY)
    _register_gradients(operations)

    def gated_attention(
        projected: tf.Tensor,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        offsets: tf.Tensor,
        targets: tf.Tensor,
        **settings: Any,
    ) -> tf.Tensor:
        gamma, beta = _as_floats(gamma), _as_floats(beta)
        return operations.hstu_gated_attention(
            projected=projected,
            gamma=gamma,
            beta=beta,
            offsets=offsets,
            targets=targets,
            **settings,
        )

    def target_attention(
        projected: tf.Tensor,
        history: tf.Tensor,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        history_offsets: tf.Tensor,
        target_offsets: tf.Tensor,
        **settings: Any,
    ) -> tf.Tensor:
        return operations.hstu_target_attention(
            projected=projected,
            history=history,
            gamma=_as_floats(gamma),
            beta=_as_floats(beta),
            history_offsets=history_offsets,
            target_offsets=target_offsets,
            **settings,
        )

    def layer_norm(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *, epsilon: float, swish: bool
    ) -> tf.Tensor:
        gamma, beta = _as_floats(gamma), _as_floats(beta)
        return operations.hstu_layer_norm(x=x, gamma=gamma, beta=beta, epsilon=epsilon, swish=swish)

    def dropout(x: tf.Tensor, keys: tf.Tensor, *, rate: float) -> tf.Tensor:
        if not 0 <= rate < 1:
            raise ValueError(f"expected a dropout rate of at least 0 and below 1, found {rate}")
        return operations.hstu_dropout(
            x=x, keys=keys, threshold=int(rate * 2**32), factor=1 / (1 - rate)
        )

    return HstuOps(gated_attention, target_attention, layer_norm, dropout)


def is_built() -> bool:
    """Whether the operations can be loaded here."""
    try:
        load()
    except OSError:
        return False
    return True


def _as_floats(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float32)


def _register_gradients(operations: Any) -> None:
    names = "heads", "attention_dim", "value_dim", "scale", "groups", "epsilon"

    def of_attention(gradient: Any, operation: Any, upstream: tf.Tensor) -> list[tf.Tensor | None]:
        settings = {name: operation.get_attr(name) for name in names}
        found = gradient(*operation.inputs, operation.outputs[0], upstream, **settings)
        return [*found, None, None]  # none of offsets and numbers

    @tf.RegisterGradient("HstuGatedAttention")
    def gated_attention_gradient(operation: Any, upstream: tf.Tensor) -> list[tf.Tensor | None]:
        return of_attention(operations.hstu_gated_attention_grad, operation, upstream)

    @tf.RegisterGradient("HstuTargetAttention")
    def target_attention_gradient(operation: Any, upstream: tf.Tensor) -> list[tf.Tensor | None]:
        return of_attention(operations.hstu_target_attention_grad, operation, upstream)

    @tf.RegisterGradient("HstuLayerNorm")
    def layer_norm_gradient(operation: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
        x, gamma, beta = operation.inputs
        found = operations.hstu_layer_norm_grad(
            x=x,
            gamma=gamma,
            beta=beta,
            upstream=upstream,
            epsilon=operation.get_attr("epsilon"),
            swish=operation.get_attr("swish"),
        )
        return list(found)

    @tf.RegisterGradient("HstuDropout")
    def dropout_gradient(operation: Any, upstream: tf.Tensor) -> list[tf.Tensor | None]:
        x = operations.hstu_dropout(
            x=upstream,
            keys=operation.inputs[1],
            threshold=operation.get_attr("threshold"),
            factor=operation.get_attr("factor"),
        )
        return [x, None]
