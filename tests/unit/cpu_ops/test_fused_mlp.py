"""The fused MLP against float64 NumPy, at every instruction set and through TensorFlow."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from dlrm import cpu_ops
from dlrm.config import Config
from dlrm.layers.mlp import MLP
from dlrm.train.dense_part import as_tf_variable
from model import build_model
from tests.support.guarded import Guarded
from tests.support.processes import run

Doubles = NDArray[np.float64]
SEED = 20261127
SIZES = ("packed", "hidden", "errors", "scratch")
ROWS = 128  # MLP_ROWS
LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}
BOUND = 4e-6  # sums of up to 512 float32 values, in order
# Widths around those of registers and panels (16 or 32 columns), and those of Criteo Kaggle.
SHAPES = [
    (1, 1),
    (13, 7, 3),
    (33, 65, 1),
    (17, 300, 31, 2),
    (367, 512, 256, 1),
    (13, 512, 256, 64, 16),
]


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=dlrm/cpu_ops"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


class Case(NamedTuple):
    """Values of float32, and what float64 makes of them."""

    inputs: Any
    kernels: list[Any]
    biases: list[Any]
    upstream: Any
    output: Doubles
    gradients: list[Doubles]  # of the inputs, the kernels and the biases


def case(widths: Sequence[int], samples: int, last_relu: bool) -> Case:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)

    def normal(*shape: int) -> Any:
        return generator.standard_normal(shape, np.float32)

    inputs, upstream = normal(samples, widths[0]), normal(samples, widths[-1])
    kernels = [normal(a, b) / np.float32(np.sqrt(a)) for a, b in zip(widths, widths[1:])]
    biases = [normal(width) for width in widths[1:]]
    values = [inputs.astype(np.float64)]
    relus = [True] * (len(kernels) - 1) + [last_relu]
    for kernel, bias, relu in zip(kernels, biases, relus):
        sums = values[-1] @ kernel.astype(np.float64) + bias
        values.append(np.maximum(sums, 0) if relu else sums)
    error = upstream.astype(np.float64)
    of_kernels: list[Doubles] = []
    of_biases: list[Doubles] = []
    for index in reversed(range(len(kernels))):
        if relus[index]:
            error = error * (values[index + 1] > 0)
        of_kernels.insert(0, values[index].T @ error)
        of_biases.insert(0, error.sum(axis=0))
        error = error @ kernels[index].astype(np.float64).T
    return Case(inputs, kernels, biases, upstream, values[-1], [error, *of_kernels, *of_biases])


def assert_close(found: Any, expected: Doubles) -> None:
    assert found.shape == expected.shape
    if not expected.size:
        return
    error = np.linalg.norm(found.astype(np.float64) - expected)
    assert error <= BOUND * np.linalg.norm(expected)  # also fails on NaN: what nobody wrote


class Shape(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_int32),
        ("last_relu", ctypes.c_int32),
        ("widths", ctypes.POINTER(ctypes.c_int64)),
    ]


@functools.cache
def kernels() -> ctypes.CDLL:
    cpu_ops.load()  # TensorFlow must be the first to open it
    library = ctypes.CDLL(str(cpu_ops.BUILD / f"tensorflow-{tf.__version__}" / cpu_ops.LIBRARY))
    for name in SIZES:
        getattr(library, f"mlp_{name}_size").restype = ctypes.c_int64
    return library


def pointers(arrays: Sequence[Any]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def run_kernels(
    level: int, given: Case, widths: Sequence[int], last_relu: bool, block: int, parts: int
) -> list[Guarded]:
    """Output and gradients, computed block after block."""
    library, samples = kernels(), len(given.inputs)
    shape = Shape(len(widths) - 1, last_relu, (ctypes.c_int64 * len(widths))(*widths))
    at = ctypes.byref(shape)
    size = {name: getattr(library, f"mlp_{name}_size")(at) for name in SIZES}
    packed = [Guarded((size["packed"],), "float32") for _ in range(2)]
    for transposed, to in enumerate(packed):
        for part in reversed(range(parts)):
            library.mlp_cpu_pack(
                *(level, at, transposed, pointers(given.kernels)),
                *(ctypes.c_int64(part), ctypes.c_int64(parts)),
                ctypes.c_void_p(to.values.ctypes.data),
            )
    count = len(given.kernels)
    output = Guarded(given.output.shape, "float32")
    of_input, *sums = (Guarded(gradient.shape, "float32") for gradient in given.gradients)
    scratch = Guarded((block * size["scratch"],), "float32")

    def place(array: Any, first: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(array[first:].ctypes.data)

    for first in range(0, samples, block):
        number = ctypes.c_int64(min(block, samples - first))
        hidden, errors = (
            Guarded((number.value * size[name],), "float32") for name in ("hidden", "errors")
        )
        scratch.values[:] = np.nan
        library.mlp_cpu_forward(
            *(level, at, place(packed[0].values, 0), pointers(given.biases), number),
            *(place(given.inputs, first), place(hidden.values, 0), place(output.values, first)),
            place(scratch.values, 0),
        )
        library.mlp_cpu_errors(
            *(level, at, place(packed[1].values, 0), number, place(hidden.values, 0)),
            *(place(output.values, first), place(given.upstream, first)),
            *(place(of_input.values, first), place(errors.values, 0)),
        )
        for layer, row in [(i, row) for i in range(count) for row in range(0, widths[i], ROWS)]:
            scratch.values[:] = np.nan
            library.mlp_cpu_gradients(
                *(level, at, layer, ctypes.c_int64(row)),
                *(ctypes.c_int64(min(row + ROWS, widths[layer])), number),
                *(place(given.inputs, first), place(hidden.values, 0), place(errors.values, 0)),
                *(first > 0, place(sums[layer].values, 0), place(sums[count + layer].values, 0)),
                place(scratch.values, 0),
            )
        hidden.assert_margins_untouched()
        errors.assert_margins_untouched()
    for each in (*packed, scratch):
        each.assert_margins_untouched()
    return [output, of_input, *sums]


@pytest.mark.parametrize("widths", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_kernels(level: str, widths: tuple[int, ...]) -> None:
    if LEVELS[level] > kernels().mlp_cpu_level():
        pytest.skip(f"this CPU has no {level}")
    for samples, block, parts, last_relu in ((5, 8, 1, True), (70, 32, 3, False)):
        given = case(widths, samples, last_relu)
        found = run_kernels(LEVELS[level], given, widths, last_relu, block, parts)
        for each, expected in zip(found, [given.output, *given.gradients]):
            each.assert_margins_untouched()
            assert_close(each.values, expected)


def through_tensorflow(given: Case, last_relu: bool, learns: bool) -> tuple[Any, list[Any]]:
    """The output, and the gradients of the inputs, the kernels and the biases."""
    fused = cpu_ops.load().fused_mlp
    tensors = tf.nest.map_structure(tf.constant, [given.inputs, given.kernels, given.biases])
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = fused(*tensors, last_relu=last_relu, input_learns=learns)
    found = tape.gradient(output, tf.nest.flatten(tensors), output_gradients=given.upstream)
    return output, found


@pytest.mark.parametrize("samples", [0, 1, 31, 256, 257, 513, 2300])
@pytest.mark.parametrize("last_relu", [False, True])
def test_operation(samples: int, last_relu: bool) -> None:
    """Batches of no block, one, several, and more than a turn of the backward pass."""
    given = case((19, 70, 33, 5), samples, last_relu)
    output, gradients = through_tensorflow(given, last_relu, learns=True)
    for found, expected in zip([output, *gradients], [given.output, *given.gradients]):
        assert_close(found.numpy(), expected)


BITS = """
import hashlib
import tensorflow as tf
from tests.unit.cpu_ops.test_fused_mlp import case, through_tensorflow
tf.config.threading.set_intra_op_parallelism_threads({threads})
output, gradients = through_tensorflow(case((19, 170, 33, 5), 1000, True), True, learns=True)
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in [output, *gradients])).hexdigest())
"""


@pytest.mark.runs
def test_the_same_bits_on_any_number_of_cores() -> None:
    found = []
    for threads in (1, 2, 5):
        ended = run([sys.executable, "-c", BITS.format(threads=threads)], time_limit=120)
        assert ended.code == 0, ended.output[-3000:]
        found.append(ended.output.split()[-1])
    assert len(set(found)) == 1, found


def test_no_gradient_of_inputs_that_do_not_learn() -> None:
    given = case((19, 70, 5), 40, False)
    _, gradients = through_tensorflow(given, False, learns=False)
    assert gradients[0] is None
    for found, expected in zip(gradients[1:], given.gradients[1:]):
        assert_close(found.numpy(), expected)


@pytest.mark.parametrize("layer", ["inputs", "kernels", "biases"])
def test_a_nan_is_not_hidden(layer: str) -> None:
    """A ReLU that made zero of it would let a broken run go on."""
    given = case((19, 70, 5), 40, True)
    poisoned = tf.nest.flatten(getattr(given, layer))[0]
    poisoned.flat[3] = np.nan
    output, gradients = through_tensorflow(given, True, learns=True)
    assert np.isnan(output.numpy()).any()
    if layer != "biases":
        assert any(np.isnan(gradient.numpy()).any() for gradient in gradients)


@pytest.mark.parametrize("learns", [False, True])
def test_the_layer_gives_the_same_with_it(learns: bool) -> None:
    given = case((13, 64, 16), 100, True)
    results = []
    for fused in (None, cpu_ops.load().fused_mlp):
        layer = MLP(
            (64, 16), last_relu=True, input_learns=learns, fused=fused, seed=3, name="m",
            dtype="float32",
        )  # fmt: skip
        with tf.GradientTape() as tape:
            inputs = tf.constant(given.inputs)
            tape.watch(inputs)
            output = layer(inputs)
        weights = [as_tf_variable(weight) for weight in layer.trainable_variables]
        results.append([output, *tape.gradient(output, [inputs, *weights], given.upstream)])
    for plain, fused in zip(*results):
        assert (plain is None) == (fused is None)
        if plain is not None:
            assert_close(fused.numpy(), plain.numpy().astype(np.float64))


def test_static_shapes() -> None:
    fused = cpu_ops.load().fused_mlp
    specs = [tf.TensorSpec(shape) for shape in ([None, 13], [13, 8], [8, 1], [8], [1])]

    @tf.function(input_signature=specs, autograph=False)
    def both(inputs: tf.Tensor, *weights: tf.Tensor) -> Any:
        output = fused(inputs, weights[:2], weights[2:], last_relu=False, input_learns=True)
        assert output.shape.as_list() == [None, 1]
        gradients = tf.gradients(output, [inputs, *weights])
        assert [g.shape.as_list() for g in gradients] == [spec.shape.as_list() for spec in specs]
        return gradients

    both.get_concrete_function()


@pytest.mark.parametrize(
    "shapes",
    [
        [[4, 3, 1], [3, 2], [2]],
        [[4, 3], [2, 2], [2]],
        [[4, 3], [3, 2], [3]],
        [[4, 3], [3], [2]],
        [[4, 3], [3, 2], [2, 1]],
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: list[list[int]]) -> None:
    fused = cpu_ops.load().fused_mlp
    inputs, kernel, bias = (tf.zeros(shape) for shape in shapes)

    def call(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return fused(inputs, [kernel], [bias], last_relu=True, input_learns=True)

    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        call(inputs, kernel, bias)
    unknown = [tf.TensorSpec(None)] * 3
    late = tf.function(call, input_signature=unknown, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected"):
        late(inputs, kernel, bias)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"custom_mlp": True}, True),
        ({"custom_mlp": True, "xla": True}, True),
        ({"custom_mlp": True, "amp": True}, False),
        ({}, False),
    ],
)
def test_when_a_model_uses_it(settings: dict[str, bool], expected: bool) -> None:
    config = Config.of(
        use_synthetic_dataset=True, embedding_dim=4, bottom_mlp=(4,), top_mlp=(1,), **settings
    )
    model = build_model(config)
    model(tf.zeros([2, 3]), tf.zeros([2, 5, 4]))
    call = tf.function(model.call, autograph=False)
    graph = call.get_concrete_function(tf.zeros([2, 3]), tf.zeros([2, 5, 4])).graph
    assert ("FusedMlp" in {node.type for node in graph.get_operations()}) == expected
