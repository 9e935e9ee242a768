"""The matrix products of a step: their operations, and the time that they take at the least."""

from __future__ import annotations

import statistics
import time

import tensorflow as tf

from dlrm.layers.interaction_shape import DOT_SHAPE, InteractionShape

# Rows and columns of a product that is large enough for full speed: on a CPU, on a GPU.
CPU_SQUARE, GPU_SQUARE = 1024, 8192
REPETITIONS = 4


def products(
    num_dense: int,
    tables: int,
    bottom: tuple[int, ...],
    top: tuple[int, ...],
    interaction: InteractionShape = DOT_SHAPE,
) -> int:
    """Returns the floating-point operations per sample in the products of one step.

    A layer multiplies three times: output, gradient of its kernel, gradient of its input; the first
    layer of the bottom MLP needs no gradient of its input. A pair of the dot interaction costs one
    multiplication per value in the forward pass and two in the backward pass; a cross layer has two
    products as a layer has one. What works value by value is not counted.

    Args:
        num_dense: Number of dense columns.
        tables: Number of embedding tables.
        bottom: Units of the bottom MLP's layers; the last is the width of the vectors.
        top: Units of the top MLP's layers.
        interaction: The interaction.
    """

    def multiplications(units: list[int]) -> list[int]:
        return [a * b for a, b in zip(units, units[1:])]

    first, *others = multiplications([num_dense, *bottom])
    others += multiplications([interaction.output_width(bottom[-1], tables), *top])
    others.append(interaction.multiplications(bottom[-1], tables))
    return 2 * (2 * first + 3 * sum(others))


def product_rate(lanes: int, dtype: str) -> float:
    """Measures this device's floating-point operations per second in large square products.

    Args:
        lanes: Number of products at the same time, which keep all cores busy.
        dtype: The type of the factors.
    """
    size = GPU_SQUARE if tf.config.list_logical_devices("GPU") else CPU_SQUARE
    squares = [tf.cast(tf.random.normal([size, size]), dtype) for _ in range(lanes)]

    @tf.function(autograph=False)
    def multiply() -> tf.Tensor:
        return tf.add_n([tf.matmul(square, square)[0, 0] for square in squares])

    seconds = []
    for _ in range(1 + REPETITIONS):
        begin = time.perf_counter()
        multiply().numpy()
        seconds.append(time.perf_counter() - begin)
    return lanes * 2 * size**3 / statistics.median(seconds[1:])  # the first compiles
