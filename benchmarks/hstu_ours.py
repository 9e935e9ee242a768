"""Our HSTU layer on the fused operations, as `benchmarks.hstu` measures it; it starts it."""

from __future__ import annotations

import itertools
from typing import Any, Callable

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.hstu_cases import THREADS, HstuCase, sample, work

SQUARE = 2048  # rows and columns of the large product's factors
PRODUCT = "product"  # the form that multiplies large matrices: the rate that bounds float32 layers


def open_ours(case: HstuCase, form: str) -> Callable[[], NDArray[Any]]:
    """Builds the layers and returns one pass through them; see `OpenCase`."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if form == PRODUCT:
        square = tf.random.normal([SQUARE, SQUARE])
        return lambda: tf.matmul(square, square)[0, :1].numpy()
    x, upstream, weights = case.data()
    layers = _layers(case, weights)
    variables = [v for layer in layers for v in layer.trainable_variables]
    order = [list(weights[0]).index(v.name.split("_", 2)[2]) for v in layers[0].weights]
    run = _training(case, layers, variables) if case.kind == "train" else _inference(case, layers)
    rows, gradient = tf.constant(x), tf.constant(upstream)

    def train() -> NDArray[Any]:
        output, of_rows, *of_weights = (tensor.numpy() for tensor in run(rows, gradient))
        per_layer = [of_weights[i : i + len(order)] for i in range(0, len(of_weights), len(order))]
        ordered = [found[order.index(i)] for found in per_layer for i in range(len(order))]
        return sample(output, of_rows[-64:], *(g[:1] for g in ordered))

    def infer() -> NDArray[Any]:
        return sample(run(rows[~case.is_target], rows[case.is_target]).numpy())

    return train if case.kind == "train" else infer


def _layers(case: HstuCase, weights: list[dict[str, Any]]) -> list[Any]:
    """The layers with the given weights."""
    from dlrm_v3 import hstu_op
    from dlrm_v3.config import HstuConfig
    from dlrm_v3.model.layers import HstuLayer

    config = HstuConfig(
        width=case.width,
        layers=case.layers,
        heads=case.heads,
        attention_dim=case.head_dim,
        value_dim=case.head_dim,
        hidden=1,
        max_history=case.longest,
    )
    seeds, layers = itertools.count(), []
    for number, values in enumerate(weights):
        layer = HstuLayer(
            config,
            case.longest + case.targets,
            ops=hstu_op.load(),
            seeds=seeds,
            name=f"layer_{number}",
            dtype="float32",
        )
        for variable in layer.weights:
            variable.assign(values[variable.name.split("_", 2)[2]])
        layers.append(layer)
    return layers


def _training(case: HstuCase, layers: list[Any], variables: list[Any]) -> Callable[..., Any]:
    """Forward and backward pass: positions and the result's gradient -> result and gradients."""
    import tensorflow as tf

    offsets = tf.constant(case.offsets, tf.int32)
    targets = tf.fill([case.requests], case.targets)
    plain = [variable.value for variable in variables]

    @tf.function
    def run(x: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = x
            for layer in layers:
                attended = layer.attend(layer.project(output), offsets, targets)
                output = layer.output(attended, output)
        return [output, *tape.gradient(output, [x, *plain], upstream)]

    return run


def _inference(case: HstuCase, layers: list[Any]) -> Callable[..., Any]:
    """Histories once, then their candidates on kept keys and values: -> candidates' rows."""
    import tensorflow as tf

    offsets = tf.constant(np.append(0, np.cumsum(case.histories)), tf.int32)
    target_offsets = tf.constant(np.arange(case.requests + 1) * case.targets, tf.int32)
    none = tf.zeros([case.requests], tf.int32)

    @tf.function
    def run(history: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        kept = []
        for layer in layers[:-1]:
            projected = layer.project(history)
            kept.append(layer.keys_and_values(projected))
            history = layer.output(layer.attend(projected, offsets, none), history)
        kept.append(layers[-1].project_keys_and_values(history))
        for layer, state in zip(layers, kept):
            projected = layer.project(candidates)
            attended = layer.attend_kept(projected, state, offsets, target_offsets)
            candidates = layer.output(attended, candidates)
        return candidates

    return run


if __name__ == "__main__":
    # Loaded before `work` looks at the memory: what the libraries hold is not the layers'.
    import dlrm_v3.model.layers  # noqa: F401

    work(open_ours)
