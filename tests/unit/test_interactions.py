"""The interactions beside the dot products: float64 NumPy, finite differences, counts, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dlrm.config import Config
from dlrm.layers.cross import CrossLayers
from dlrm.layers.interaction_shape import INTERACTIONS, InteractionShape
from dlrm.layers.interactions import concat_interaction, sum_interaction
from dlrm.train.dense_part import plain_name
from dlrm.train.products import products
from model import DLRM, build_model
from tests.support.reference_interactions import ReferenceInteraction

SEED = 90125
B, T, W, LAYERS, RANK = 6, 4, 3, 3, 5
N = (T + 1) * W
# Of the largest value: half a unit in the last place of each type, and what products add to it.
TOLERANCES = {"float32": 2e-6, "float16": 1e-2, "bfloat16": 6e-2}


def arrays(*shapes: tuple[int, ...]) -> list[Any]:
    """Random arrays that every one of the types holds exactly."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    return [np.rint(generator.normal(size=shape) * 32) / 64 for shape in shapes]


def cross_weights() -> list[Any]:
    return arrays(*[(N, RANK), (RANK, N), (N,)] * LAYERS)


def cross(dtype: str, compiled: bool = False) -> CrossLayers:
    """The layers with `cross_weights`."""
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layers = CrossLayers(LAYERS, RANK, compiled=compiled, seed=1, dtype=policy)
    layers(tf.zeros([1, N]))
    layers.set_weights(cross_weights())
    return layers


def operate(layers: Any, inputs: Any, upstream: Any, dtype: str, graph: str) -> list[Any]:
    """Output, gradient of the input, and gradients of all weights."""
    weights = [
        weight if isinstance(weight, tf.Variable) else weight.value
        for weight in layers.trainable_variables
    ]

    def forward_and_back(inputs: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layers(inputs)
        return [outputs, *tape.gradient(outputs, [inputs, *weights], output_gradients=upstream)]

    function = {
        "eager": forward_and_back,
        "graph": tf.function(forward_and_back, autograph=False),
        "xla": tf.function(forward_and_back, autograph=False, jit_compile=True),
    }[graph]
    return [
        tf.cast(x, tf.float64).numpy()
        for x in function(*(tf.cast(x, dtype) for x in (inputs, upstream)))
    ]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("graph", ["eager", "graph", "xla"])
def test_cross_layers_are_those_of_float64(dtype: str, graph: str) -> None:
    *_, inputs, upstream = arrays(*[(N, RANK), (RANK, N), (N,)] * LAYERS, (B, N), (B, N))
    found = operate(cross(dtype), inputs, upstream, dtype, graph)
    reference = ReferenceInteraction("dcnv2", cross_weights())
    stacked = inputs.reshape(B, T + 1, W)
    output = reference.forward(stacked)
    of_inputs, of_weights = reference.backward(stacked, upstream)
    expected = [output, of_inputs.reshape(B, N), *of_weights]
    assert len(found) == len(expected) == 2 + 3 * LAYERS
    for value, wanted in zip(found, expected):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(
            value, wanted, rtol=0, atol=TOLERANCES[dtype] * np.abs(wanted).max()
        )


def test_xla_compiles_cross_layers_alone() -> None:
    *_, inputs, upstream = arrays(*[(N, RANK), (RANK, N), (N,)] * LAYERS, (B, N), (B, N))
    plain = operate(cross("float32"), inputs, upstream, "float32", "graph")
    for value, wanted in zip(
        operate(cross("float32", compiled=True), inputs, upstream, "float32", "graph"), plain
    ):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["dcnv2", "sum", "concat"])
def test_gradients_against_finite_differences(kind: str) -> None:
    weights = cross_weights() if kind == "dcnv2" else []
    width = W if kind == "sum" else N
    *_, stacked, upstream = arrays(*(w.shape for w in weights), (B, T + 1, W), (B, width))
    reference = ReferenceInteraction(kind, weights)
    reference.forward(stacked)
    of_stacked, of_weights = reference.backward(stacked, upstream)
    variables = [stacked, *reference.weights]
    for variable, gradient in zip(variables, [of_stacked, *of_weights]):
        expected = np.zeros(variable.shape)
        for index in np.ndindex(variable.shape):
            before, sums = variable[index], []
            for change in (1e-5, -1e-5):
                variable[index] = before + change
                sums.append(np.sum(reference.forward(stacked) * upstream))
            variable[index] = before
            expected[index] = (sums[0] - sums[1]) / 2e-5
        np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())


def test_one_cross_layer_by_hand() -> None:
    layers = CrossLayers(1, 1, seed=0, dtype="float32")
    layers(tf.zeros([1, 2]))
    layers.set_weights([np.array([[1.0], [2.0]]), np.array([[3.0, 5.0]]), np.array([1.0, -1.0])])
    # V x = 3 + 2 * 4 = 11; W V x + b = (34, 54); times x0 = (3, 4), and x added.
    assert layers(tf.constant([[3.0, 4.0]])).numpy().tolist() == [[3 * 34 + 3, 4 * 54 + 4]]


@pytest.mark.parametrize("kind", ["sum", "concat"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "xla"])
def test_sum_and_concat(kind: str, compiled: bool) -> None:
    width = W if kind == "sum" else N
    stacked, upstream = arrays((B, T + 1, W), (B, width))
    interact = sum_interaction if kind == "sum" else concat_interaction

    @tf.function(jit_compile=compiled, autograph=False)
    def operate(*tensors: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = interact(*tensors)
        return output, tape.gradient(output, tensors, output_gradients=tf.constant(upstream))

    # The tables come as two groups.
    groups = [stacked[:, 0], stacked[:, 1:2], stacked[:, 2:]]
    output, gradients = operate(*map(tf.constant, groups))
    reference = ReferenceInteraction(kind)
    np.testing.assert_allclose(output, reference.forward(stacked), rtol=1e-12)
    found = np.concatenate([gradients[0][:, None], *gradients[1:]], axis=1)
    np.testing.assert_array_equal(found, reference.backward(stacked, upstream)[0])


def test_gradients_of_a_cross_layers_bias_are_added_up_in_float32() -> None:
    """In bfloat16, a sum of 4096 values of about 1 would stop at 256."""
    layers = CrossLayers(1, 1, seed=0, dtype="mixed_bfloat16")
    layers(tf.zeros([1, 2]))
    with tf.GradientTape() as tape:
        output = layers(tf.ones([4096, 2], tf.bfloat16))
    gradient = tape.gradient(output, layers.trainable_variables[2])
    np.testing.assert_array_equal(tf.cast(gradient, tf.float64), [4096, 4096])


def small(**settings: Any) -> Config:
    return Config.of(
        use_synthetic_dataset=True,
        embedding_dim=W,
        bottom_mlp=(8, W),
        top_mlp=(8, 1),
        **{"cross_layers": 2, "cross_rank": 4, **settings},
    )


def built(config: Config) -> Any:
    model = build_model(config)
    model(tf.zeros([1, 3]), tf.zeros([1, T, W]))
    return model


@pytest.mark.parametrize("kind", INTERACTIONS)
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "float16"])
def test_the_model_has_the_weights_and_products_that_are_counted(kind: str, amp: bool) -> None:
    config = small(interaction=kind, amp=amp)
    model, shape = built(config), config.model.interaction_shape
    names = [plain_name(weight) for weight in model.trainable_variables]
    shapes = {name: tuple(w.shape) for name, w in zip(names, model.trainable_variables)}
    assert names[0] == "bottom_kernel_0"
    assert names[-1] == "top_bias_1"
    assert shapes["top_kernel_0"][0] == shape.output_width(W, T)
    cross = {name: size for name, size in shapes.items() if name.startswith("cross")}
    assert sum(int(np.prod(size)) for size in cross.values()) == shape.weights(W, T)
    if kind == "dcnv2":
        assert cross == {
            name: size
            for n in range(2)
            for name, size in (
                (f"cross_v_{n}", (N, 4)),
                (f"cross_w_{n}", (4, N)),
                (f"cross_bias_{n}", (N,)),
            )
        }
    logits = model(tf.ones([2, 3]), tf.ones([2, T, W]))
    assert logits.dtype == tf.float32
    assert tf.reduce_all(tf.math.is_finite(logits))
    # Every matrix is multiplied three times, the first without a gradient of its input.
    matrices = [size for name, size in shapes.items() if len(size) == 2]
    expected = 3 * sum(a * b for a, b in matrices) - 3 * 8
    expected += 3 * 10 * W if kind == "dot" else 0
    assert products(3, T, (8, W), (8, 1), shape) == 2 * expected


def test_mlperfs_cross_layers_have_the_published_number_of_weights() -> None:
    shape = InteractionShape("dcnv2", 3, 512)
    assert shape.output_width(128, 26) == 3456
    assert shape.weights(128, 26) == 10_627_200
    layers = CrossLayers(3, 512, seed=0, dtype="float32")
    layers(tf.zeros([1, 3456]))
    weights = layers.get_weights()
    assert sum(weight.size for weight in weights) == 10_627_200
    for weight in weights:
        if weight.ndim == 1:
            assert not weight.any()
        else:
            variance = 2 / sum(weight.shape)
            assert weight.var() == pytest.approx(variance, rel=4 * (2 / weight.size) ** 0.5)
    for one, other in itertools.combinations(weights, 2):
        assert one.shape != other.shape or one.ndim == 1 or not np.array_equal(one, other)


@pytest.mark.parametrize("kind", INTERACTIONS)
def test_the_shape_alone_says_how_vectors_interact(kind: str) -> None:
    """A `DLRM` that is built by hand computes what `build_model` builds."""
    config = small(interaction=kind)
    by_hand = DLRM((8, W), (8, 1), seed=0, dtype="float32", shape=config.model.interaction_shape)
    dense, vectors = np.ones((2, 3), np.float32), np.full((2, T, W), 0.5, np.float32)
    found, expected = by_hand(dense, vectors), built(config)(dense, vectors)
    np.testing.assert_array_equal(found, expected)


def test_xla_takes_the_whole_model_or_its_layers() -> None:
    """With a fused operation between them the layers are compiled one by one."""
    dense, vectors = np.ones((2, 3), np.float32), np.ones((2, T, W), np.float32)
    whole = built(small(interaction="dcnv2", xla=True))
    shape = small(interaction="dcnv2").model.interaction_shape
    parts = DLRM(
        (8, W),
        (8, 1),
        seed=0,
        dtype="float32",
        shape=shape,
        compile_mlps=True,
    )
    function = tf.function(whole.call, jit_compile=True, autograph=False)
    np.testing.assert_allclose(function(dense, vectors), parts(dense, vectors), rtol=1e-5)
