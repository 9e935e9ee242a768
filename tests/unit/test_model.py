"""The dense part against a forward pass and gradients written out in float64 NumPy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.layers.bias import add_bias
from dlrm.layers.dot_interaction import dot_interaction
from dlrm.layers.interaction_width import interaction_width
from dlrm.layers.mlp import MLP
from model import DLRM

Doubles = NDArray[np.float64]
SEED = 4711
# batch, tables, width: one table, no padding needed, padding of 1 to 7, the benchmarks' shapes.
SHAPES = [(3, 1, 1), (2, 1, 7), (4, 3, 2), (5, 4, 6), (2, 8, 4), (3, 26, 16), (2, 26, 128)]


def reference_interaction(bottom: Doubles, vectors: Doubles) -> Doubles:
    """Bottom, then x_i . x_j for i = 1, 2, .. and j < i, then zeros up to a multiple of 8."""
    rows = [bottom, *(vectors[:, table] for table in range(vectors.shape[1]))]
    columns = [bottom]
    for i in range(len(rows)):
        for j in range(i):
            columns.append(np.sum(rows[i] * rows[j], axis=1, keepdims=True))
    joined = np.concatenate(columns, axis=1)
    return np.pad(joined, [[0, 0], [0, -joined.shape[1] % 8]])


def reference_gradients(
    bottom: Doubles, vectors: Doubles, upstream: Doubles
) -> tuple[Doubles, Doubles]:
    """Pair by pair: d(x_i . x_j) = x_j dx_i + x_i dx_j."""
    rows = [bottom, *(vectors[:, table] for table in range(vectors.shape[1]))]
    gradients = [np.zeros_like(bottom) for _ in rows]
    gradients[0] += upstream[:, : bottom.shape[1]]
    column = bottom.shape[1]
    for i in range(len(rows)):
        for j in range(i):
            pair = upstream[:, column : column + 1]
            gradients[i] += pair * rows[j]
            gradients[j] += pair * rows[i]
            column += 1
    return gradients[0], np.stack(gradients[1:], axis=1)


def sample(batch: int, tables: int, width: int) -> tuple[Doubles, Doubles, Doubles]:
    """Bottom, vectors and an upstream gradient, padding included; float32 holds them exactly."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    values = width + tables * (tables + 1) // 2
    shapes = [(batch, width), (batch, tables, width), (batch, -(-values // 8) * 8)]
    bottom, vectors, upstream = (
        generator.normal(size=shape).astype(np.float32).astype(np.float64) for shape in shapes
    )
    return bottom, vectors, upstream


def interact(
    bottom: Doubles, vectors: Doubles, upstream: Doubles, compiled: bool = False
) -> tuple[NDArray[np.float32], ...]:
    """Our output and both gradients in float32."""

    def forward_and_back(
        bottom: tf.Tensor, vectors: tf.Tensor, upstream: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch([bottom, vectors])
            output = dot_interaction(bottom, vectors)
        return (output, *tape.gradient(output, [bottom, vectors], output_gradients=upstream))

    function = tf.function(forward_and_back, jit_compile=True) if compiled else forward_and_back
    arrays = (tf.constant(array, tf.float32) for array in (bottom, vectors, upstream))
    return tuple(tensor.numpy() for tensor in function(*arrays))


def assert_close(found: NDArray[np.float32], expected: Doubles, relative: float = 2e-6) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_interaction(shape: tuple[int, int, int]) -> None:
    bottom, vectors, upstream = sample(*shape)
    output, _, _ = interact(bottom, vectors, upstream)
    expected = reference_interaction(bottom, vectors)
    assert_close(output, expected)
    values = shape[2] + shape[1] * (shape[1] + 1) // 2
    assert not output[:, values:].any()
    assert interaction_width(shape[2], shape[1]) == expected.shape[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "xla"])
def test_both_gradients(shape: tuple[int, int, int], compiled: bool) -> None:
    bottom, vectors, upstream = sample(*shape)
    _, bottom_gradient, vectors_gradient = interact(bottom, vectors, upstream, compiled)
    expected = reference_gradients(bottom, vectors, upstream)
    assert_close(bottom_gradient, expected[0])
    assert_close(vectors_gradient, expected[1])


def test_both_gradients_against_finite_differences() -> None:
    bottom, vectors, upstream = sample(2, 3, 4)
    _, *found = interact(bottom, vectors, upstream)
    for which, gradient in enumerate(found):
        expected = np.zeros(gradient.shape)
        for index in np.ndindex(gradient.shape):
            sums = []
            for change in (1e-4, -1e-4):
                inputs = [bottom.copy(), vectors.copy()]
                inputs[which][index] += change
                sums.append(np.sum(reference_interaction(inputs[0], inputs[1]) * upstream))
            expected[index] = (sums[0] - sums[1]) / 2e-4
        assert_close(gradient, expected)


def test_interaction_by_hand() -> None:
    bottom = np.array([[1.0, 2.0]])
    vectors = np.array([[[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
    output, _, _ = interact(bottom, vectors, np.zeros([1, 8]))
    # (dense, a), (dense, b), (a, b), (dense, c), (a, c), (b, c): no padding at 2 + 6 values.
    assert output.tolist() == [[1, 2, 11, 17, 39, 23, 53, 83]]


@pytest.mark.parametrize(
    ("width", "tables", "padded"), [(128, 26, 480), (16, 26, 368), (2, 3, 8), (3, 3, 16), (1, 1, 8)]
)
def test_width_is_padded_to_a_multiple_of_8(width: int, tables: int, padded: int) -> None:
    assert interaction_width(width, tables) == padded
    output = dot_interaction(tf.ones([1, width]), tf.ones([1, tables, width]))
    # The pairs of ones are `width`; 351 pairs beside 128 and 16 values make 479 and 367.
    values = width + tables * (tables + 1) // 2
    assert {479: 480, 367: 368}.get(values, padded) == padded
    assert output.numpy().tolist() == [
        [1.0] * width + [float(width)] * (values - width) + [0.0] * (padded - values)
    ]


@pytest.mark.parametrize(
    ("bottom", "vectors"),
    [([2, 4], [2, 3, 5]), ([2, 4], [2, 4]), ([2, 1, 4], [2, 3, 4]), ([4], [2, 3, 4])],
)
def test_shapes_that_do_not_match(bottom: list[int], vectors: list[int]) -> None:
    with pytest.raises(ValueError, match="expected bottom") as caught:
        dot_interaction(tf.zeros(bottom), tf.zeros(vectors))
    assert str(tuple(bottom)) in str(caught.value)
    assert str(tuple(vectors)) in str(caught.value)


def built(
    bottom: Sequence[int],
    top: Sequence[int],
    *,
    dense: int,
    tables: int,
    seed: int = 0,
    dtype: str = "float32",
) -> DLRM:
    model = DLRM(bottom, top, seed=seed, dtype=dtype)
    model(tf.zeros([1, dense]), tf.zeros([1, tables, bottom[-1]]))
    return model


def reference_logits(
    weights: list[NDArray[np.float32]], bottom_layers: int, dense: Doubles, vectors: Doubles
) -> Doubles:
    """Layers in order, each a kernel and a bias; ReLU after all but the last."""
    layers = [
        (kernel.astype(np.float64), bias.astype(np.float64))
        for kernel, bias in zip(weights[::2], weights[1::2])
    ]
    values = dense
    for kernel, bias in layers[:bottom_layers]:
        values = np.maximum(values @ kernel + bias, 0)
    values = reference_interaction(values, vectors)
    for kernel, bias in layers[bottom_layers:-1]:
        values = np.maximum(values @ kernel + bias, 0)
    kernel, bias = layers[-1]
    logits: Doubles = (values @ kernel + bias)[:, 0]
    return logits


def inputs(
    batch: int, dense: int, tables: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    return (
        generator.normal(size=(batch, dense)).astype(np.float32),
        generator.normal(size=(batch, tables, width)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("bottom", "top", "dense", "tables"),
    [
        ((8,), (1,), 1, 1),
        ((6, 4), (5, 3, 1), 3, 5),
        ((512, 256, 64, 16), (512, 256, 1), 13, 26),
    ],
    ids=["smallest", "small", "kaggle"],
)
def test_logits(bottom: tuple[int, ...], top: tuple[int, ...], dense: int, tables: int) -> None:
    model = built(bottom, top, dense=dense, tables=tables, seed=3)
    features, vectors = inputs(16, dense, tables, bottom[-1])
    logits = model(tf.constant(features), tf.constant(vectors))
    assert logits.dtype == tf.float32
    expected = reference_logits(
        model.get_weights(), len(bottom), features.astype(np.float64), vectors.astype(np.float64)
    )
    assert_close(logits.numpy(), expected, 1e-5)
    # Linear at the end: a ReLU there would pass one of the two signs only.
    weights = model.get_weights()
    model.set_weights([*weights[:-2], -weights[-2], -weights[-1]])
    assert_close(model(tf.constant(features), tf.constant(vectors)).numpy(), -expected, 1e-5)


@functools.cache
def mlperf_weights(seed: int) -> list[NDArray[np.float32]]:
    model = built((512, 256, 128), (1024, 1024, 512, 256, 1), dense=13, tables=26, seed=seed)
    assert all(variable.trainable for variable in model.variables)
    return list(model.get_weights())


def test_mlperf_weights_have_the_published_shapes() -> None:
    layers = [(13, 512), (512, 256), (256, 128)]
    layers += [(480, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1)]
    expected = list(itertools.chain.from_iterable((layer, layer[1:]) for layer in layers))
    assert [weight.shape for weight in mlperf_weights(0)] == expected


@pytest.mark.parametrize("seed", [0, 5])
def test_kernels_are_glorot_normal(seed: int) -> None:
    for kernel in mlperf_weights(seed)[::2]:
        variance = 2 / sum(kernel.shape)
        # Four standard errors of a mean and of a variance.
        assert abs(kernel.mean()) < 4 * (variance / kernel.size) ** 0.5
        assert kernel.var() == pytest.approx(variance, rel=4 * (2 / kernel.size) ** 0.5)
        assert np.unique(kernel).size > 0.9 * kernel.size


@pytest.mark.parametrize("seed", [0, 5])
def test_biases_are_normal_with_variance_one_over_units(seed: int) -> None:
    biases = mlperf_weights(seed)[1::2]
    scaled = np.concatenate([bias * bias.size**0.5 for bias in biases])
    assert abs(scaled.mean()) < 4 / scaled.size**0.5
    assert scaled.var() == pytest.approx(1, rel=4 * (2 / scaled.size) ** 0.5)
    assert np.abs(scaled).max() > 2.5  # a normal has tails
    for bias in biases[:-1]:
        assert bias.var() == pytest.approx(1 / bias.size, rel=4 * (2 / bias.size) ** 0.5)


def test_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> list[NDArray[np.float32]]:
        return list(built((16, 8), (16, 8, 1), dense=3, tables=4, seed=seed).get_weights())

    for one, again in zip(weights(1), weights(1)):
        np.testing.assert_array_equal(one, again)


def test_no_two_layers_or_seeds_share_their_draws() -> None:
    # Layers of one shape would be equal if they drew from one seed.
    weights = [
        weight
        for seed in range(4)
        for weight in built((8, 8, 8), (8, 8, 8, 1), dense=8, tables=1, seed=seed).get_weights()
    ]
    for one, other in itertools.combinations(weights, 2):
        assert one.shape != other.shape or not np.array_equal(one, other)


# Of the deviation of all logits. TensorFlow 2.14 on a CPU also adds up in float16.
TOLERANCES = {"float16": 2e-2 if tf.__version__.startswith("2.14.") else 8e-3, "bfloat16": 6e-2}


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
def test_mixed_precision(dtype: str, tolerance: float) -> None:
    shape = ((64, 32, 16), (64, 32, 1))
    plain = built(*shape, dense=13, tables=26, seed=2)
    mixed = built(*shape, dense=13, tables=26, seed=2, dtype=f"mixed_{dtype}")
    assert {tf.as_dtype(weight.dtype) for weight in mixed.trainable_variables} == {tf.float32}
    features, vectors = inputs(256, 13, 26, 16)
    expected = plain(tf.constant(features), tf.constant(vectors))
    # Vectors arrive in the 16-bit type of the exchange, or in float32.
    for arriving in (dtype, "float32"):
        logits = mixed(tf.constant(features), tf.cast(vectors, arriving))
        assert logits.dtype == tf.float32
        error = np.abs(logits - expected).max() / np.std(expected)
        # Not equal either: the arithmetic must really be the narrow one.
        assert tolerance / 100 < error < tolerance


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_compiled_forward_equals_plain(dtype: str) -> None:
    model = built((32, 16), (32, 1), dense=13, tables=26, seed=2, dtype=dtype)
    features, vectors = inputs(64, 13, 26, 16)
    arguments = (tf.constant(features), tf.constant(vectors))
    plain = model(*arguments).numpy()
    compiled = tf.function(model.call, jit_compile=True)(*arguments).numpy()
    tolerance = TOLERANCES.get(dtype.removeprefix("mixed_"), 1e-5)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=tolerance * np.std(plain))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gradients_of_biases_are_added_up_in_float32(dtype: str) -> None:
    """In bfloat16, a sum of 4096 values of about 1 would stop at 256."""
    samples = 4096
    values = np.random.default_rng(SEED).uniform(0.5, 1.5, (samples, 3))
    upstream = tf.cast(values, dtype)
    bias = tf.zeros([3], dtype)
    for add in (add_bias, tf.function(add_bias)):
        with tf.GradientTape() as tape:
            tape.watch(bias)
            output = add(tf.ones_like(upstream), bias)
        gradient = tape.gradient(output, bias, output_gradients=upstream)
        assert gradient.dtype == upstream.dtype
        expected = upstream.numpy().astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(gradient.numpy().astype(np.float64), expected, rtol=2**-8)

    # A layer of the MLP, whose weights are zero and whose output has no ReLU.
    layer = MLP(
        [3],
        last_relu=False,
        input_learns=True,
        compiled=False,
        seed=0,
        name="layer",
        dtype=f"mixed_{dtype}" if dtype != "float32" else dtype,
    )
    features = tf.zeros([samples, 2])
    with tf.GradientTape() as tape:
        output = layer(features)
    found = tape.gradient(output, layer.trainable_variables[1], output_gradients=upstream)
    np.testing.assert_allclose(tf.cast(found, tf.float64), expected, rtol=2**-8)
