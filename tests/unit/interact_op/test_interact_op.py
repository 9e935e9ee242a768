"""The fused interaction against float64 NumPy, at every instruction set; training with it."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import interact_op
from dlrm.layers.dot_interaction import dot_interaction
from dlrm.layers.interaction_width import interaction_width
from dlrm.train.dense_part import as_tf_variable
from model import DLRM
from tests.multi_rank.workers.interact import SETTINGS
from tests.support.guarded import Guarded, dtype_of
from tests.support.processes import ROOT, run

Doubles = NDArray[np.float64]
SEED = 20240607
BOUNDS = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}
CODES = {"float32": 0, "float16": 1, "bfloat16": 2}
LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}
FEATURES, WIDTHS = (2, 3, 27, 64), (1, 8, 16, 100, 128, 256)


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=interact_op"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


class Case(NamedTuple):
    """Inputs as the type holds them, and what float64 makes of them."""

    bottom: Any
    groups: list[Any]
    upstream: Any
    output: Doubles
    bottom_gradient: Doubles
    gradients: list[Doubles]


def case(batch: int, cuts: tuple[int, ...], width: int, dtype: str) -> Case:
    """`cuts`: tables in each group."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    tables = sum(cuts)
    pairs = tables * (tables + 1) // 2
    columns = -(-(width + pairs) // 8) * 8
    bottom, vectors, upstream = (
        generator.standard_normal(shape, np.float32).astype(dtype_of(dtype))
        for shape in ([batch, width], [batch, tables, width], [batch, columns])
    )
    x = np.concatenate([bottom[:, None], vectors], axis=1).astype(np.float64)
    above = upstream.astype(np.float64)
    order = [(i, j) for i in range(tables + 1) for j in range(i)]
    rows, others = np.array(order, int).reshape(-1, 2).T
    products = x @ x.transpose(0, 2, 1)
    output = np.zeros([batch, columns])
    output[:, :width] = x[:, 0]
    output[:, width : width + pairs] = products[:, rows, others]
    symmetric = np.zeros_like(products)
    symmetric[:, rows, others] = symmetric[:, others, rows] = above[:, width : width + pairs]
    gradient = symmetric @ x
    gradient[:, 0] += above[:, :width]
    places = np.cumsum(cuts)[:-1]
    return Case(
        bottom,
        [np.ascontiguousarray(part) for part in np.split(vectors, places, axis=1)],
        upstream,
        output,
        gradient[:, 0],
        np.split(gradient[:, 1:], places, axis=1),
    )


def assert_close(found: Any, expected: Doubles, dtype: str) -> None:
    assert found.shape == expected.shape
    if not expected.size:
        return
    error = np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error <= BOUNDS[dtype]  # also fails on NaN, so on an element that nobody wrote


class Group(ctypes.Structure):
    _fields_ = [
        ("vectors", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("group_count", ctypes.c_int32),
        ("groups", ctypes.POINTER(Group)),
        ("width", ctypes.c_int64),
    ]


@functools.cache
def kernels() -> ctypes.CDLL:
    interact_op.load()
    folder = interact_op.BUILD / f"tensorflow-{tf.__version__}"
    library = ctypes.CDLL(str(folder / interact_op.LIBRARY))
    for direction in (library.interact_cpu_forward, library.interact_cpu_backward):
        direction.argtypes = [
            *(ctypes.c_int, ctypes.POINTER(Batch)),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        ]
    return library


def run_on(given: Case, dtype: str, pieces: int, forward: Any, backward: Any) -> list[Guarded]:
    """Output, gradient of bottom, gradients of the groups; the batch cut into `pieces`."""
    batch = len(given.bottom)
    output = Guarded(given.upstream.shape, dtype)
    inputs = [given.bottom, *given.groups]
    gradients = [Guarded(array.shape, dtype) for array in inputs]
    groups = (Group * len(inputs))(
        *(
            Group(array.ctypes.data, gradient.values.ctypes.data, 1 if not i else array.shape[1])
            for i, (array, gradient) in enumerate(zip(inputs, gradients))
        )
    )
    described = Batch(CODES[dtype], len(inputs), groups, given.bottom.shape[1])
    cuts = [batch * piece // pieces for piece in range(pieces + 1)]
    for begin, end in zip(cuts, cuts[1:]):
        assert not forward(ctypes.byref(described), begin, end, output.values.ctypes.data)
        assert not backward(ctypes.byref(described), begin, end, given.upstream.ctypes.data)
    return [output, *gradients]


def run_kernels(level: int, given: Case, dtype: str, pieces: int) -> list[Guarded]:
    """`run_on` a CPU's instruction set."""
    library = kernels()
    return run_on(
        given,
        dtype,
        pieces,
        functools.partial(library.interact_cpu_forward, level),
        functools.partial(library.interact_cpu_backward, level),
    )


def needs(level: str) -> int:
    if LEVELS[level] > kernels().interact_cpu_level():
        pytest.skip(f"this CPU has no {level}")
    return LEVELS[level]


def in_groups(tables: int) -> tuple[int, ...]:
    return (tables // 2, tables - tables // 2) if tables > 1 else (tables,)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("features", FEATURES)
def test_kernels(level: str, dtype: str, features: int) -> None:
    for width, batch in itertools.product(WIDTHS, (0, 1, 7)):
        given = case(batch, in_groups(features - 1), width, dtype)
        found = run_kernels(needs(level), given, dtype, pieces=2)
        expected = [given.output, given.bottom_gradient, *given.gradients]
        for guarded, reference in zip(found, expected):
            guarded.assert_margins_untouched()
            assert_close(guarded.values, reference, dtype)
        values = width + features * (features - 1) // 2
        assert not found[0].values[:, values:].astype(np.float32).any()
        np.testing.assert_array_equal(found[0].values[:, :width], given.bottom)


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_of_every_count_of_rows(level: str) -> None:
    """Each height of a register tile, each rest of a vector of rows, up to three vectors."""
    for features in range(1, 50):
        given = case(2, (features - 1,), 3, "float32")
        found = run_kernels(needs(level), given, "float32", pieces=1)
        for guarded, reference in zip(
            found, [given.output, given.bottom_gradient, *given.gradients]
        ):
            guarded.assert_margins_untouched()
            assert_close(guarded.values, reference, "float32")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversion_of_every_16_bit_value(level: str, dtype: str) -> None:
    """The first vector comes back as it is; its product with 1 is rounded from float32 again."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(dtype_of(dtype))
    given = Case(
        values.reshape(-1, 1),
        [np.ones([len(bits), 1, 1], values.dtype)],
        np.zeros([len(bits), 8], values.dtype),
        *(np.zeros(0), np.zeros(0), []),
    )
    output = run_kernels(needs(level), given, dtype, pieces=1)[0].values
    number = ~np.isnan(values.astype(np.float32))
    for column in (0, 1):
        found = np.ascontiguousarray(output[:, column]).view(np.uint16)
        np.testing.assert_array_equal(np.isnan(output[:, column].astype(np.float32)), ~number)
        same = found == bits
        # A sum that begins with +0 has no -0; bfloat16 subnormals are float32 subnormals too.
        assert (same | ~number | (column == 1) & (bits == 0x8000)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_nearest_even(level: str, dtype: str) -> None:
    """Products of two 16-bit numbers are exact in float32: one rounding, which must be NumPy's."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    count = 1 << 16
    exponents = generator.integers(-13, 9, (2, count))
    a, b = (np.ldexp(generator.uniform(1, 2, count), e).astype(dtype_of(dtype)) for e in exponents)
    given = Case(
        a.reshape(-1, 1),
        [b.reshape(-1, 1, 1)],
        np.zeros([count, 8], a.dtype),
        *(np.zeros(0), np.zeros(0), []),
    )
    output = run_kernels(needs(level), given, dtype, pieces=1)[0].values
    exact = a.astype(np.float32) * b.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = exact.astype(a.dtype)
    np.testing.assert_array_equal(output[:, 1], expected)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels, built for this CPU: each lane of a warp is a coroutine."""
    library = tmp_path_factory.mktemp("cuda") / "emulated.so"
    source, emulation = (
        ROOT / "interact_op" / "cuda_kernels.cu",
        ROOT / "tests" / "emulation" / "cuda",
    )
    folder = interact_op.BUILD / f"tensorflow-{tf.__version__}"
    ended = run(
        [
            *("g++", "-std=c++17", "-O2", "-fno-strict-aliasing", "-fPIC", "-shared"),
            *(f"-I{emulation}", "-x", "c++", source, "-x", "none"),
            *(folder / interact_op.LIBRARY, "-o", library),
        ],
        time_limit=300,
    )
    assert ended.code == 0, ended.output[-3000:]
    kernels()
    loaded = ctypes.CDLL(str(library))
    for direction in (loaded.interact_cuda_forward, loaded.interact_cuda_backward):
        direction.restype = ctypes.c_char_p
        direction.argtypes = [
            *(ctypes.POINTER(Batch), ctypes.c_int64, ctypes.c_int),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
    return loaded


def run_emulated(library: ctypes.CDLL, given: Case, dtype: str, tf32: bool) -> list[Guarded]:
    def launched(direction: Any) -> Any:
        return lambda batch, begin, end, array: direction(batch, end - begin, tf32, array, None)

    return run_on(
        given,
        dtype,
        1,
        launched(library.interact_cuda_forward),
        launched(library.interact_cuda_backward),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("memory", [227 << 10, 48 << 10, 1 << 10])
@pytest.mark.parametrize(
    ("dtype", "tf32"), [*((name, False) for name in BOUNDS), ("float32", True)]
)
def test_emulated_cuda_kernels(emulated: ctypes.CDLL, dtype: str, tf32: bool, memory: int) -> None:
    """Four warps a block, fewer, and the kernels for samples too large for shared memory."""
    ctypes.c_int.in_dll(emulated, "emulated_shared_memory").value = memory
    for features, width in ((2, 1), (3, 8), (27, 16), (27, 100), (27, 128), (34, 20), (64, 24)):
        given = case(11 if features < 27 else 3, in_groups(features - 1), width, dtype)
        found = run_emulated(emulated, given, dtype, tf32)
        expected = [given.output, given.bottom_gradient, *given.gradients]
        for guarded, reference in zip(found, expected):
            guarded.assert_margins_untouched()
            # TF32 keeps as many bits as float16.
            assert_close(guarded.values, reference, "float16" if tf32 else dtype)


def operate(given: Case, operation: Any, compiled: bool = False) -> list[tf.Tensor]:
    """Output and all gradients by way of TensorFlow."""

    def forward_and_back(bottom: tf.Tensor, groups: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([bottom, groups])
            output = operation(bottom, *groups)
        return [output, *tape.gradient(output, [bottom, *groups], output_gradients=upstream)]

    function = tf.function(forward_and_back) if compiled else forward_and_back
    tensors = tf.nest.map_structure(tf.constant, (given.bottom, given.groups, given.upstream))
    return list(function(*tensors))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_operation(dtype: str, width: int) -> None:
    for features, batch in itertools.product(FEATURES, (0, 1, 7)):
        given = case(batch, in_groups(features - 1), width, dtype)
        found = operate(given, interact_op.load())
        expected = [given.output, given.bottom_gradient, *given.gradients]
        for tensor, reference in zip(found, expected):
            assert_close(tensor.numpy(), reference, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("features", "width"),
    [
        (features, width)
        for features, width in itertools.product(FEATURES, WIDTHS)
        if features * width <= 27 * 16 or os.environ.get("EVERY_SHAPE")  # the others take minutes
    ],
)
def test_a_large_batch_over_all_threads(features: int, width: int, dtype: str) -> None:
    given = case(8192, in_groups(features - 1), width, dtype)
    found = operate(given, interact_op.load(), compiled=True)
    for tensor, reference in zip(found, [given.output, given.bottom_gradient, *given.gradients]):
        assert_close(tensor.numpy(), reference, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_values_and_order_of_the_stock_interaction(dtype: str) -> None:
    given = case(9, (4, 7, 1), 20, dtype)
    for found, stock in zip(operate(given, interact_op.load()), operate(given, dot_interaction)):
        assert_close(found.numpy(), stock.numpy().astype(np.float64), dtype)


def test_all_gradients_against_finite_differences() -> None:
    given = case(2, (2, 1), 4, "float32")
    _, *found = operate(given, interact_op.load())
    inputs = [array.astype(np.float32) for array in (given.bottom, *given.groups)]
    change = np.float32(2**-6)  # the function is bilinear: central differences have no error
    for which, gradient in enumerate(found):
        expected = np.zeros(gradient.shape)
        for index in np.ndindex(*gradient.shape):
            sums = []
            for sign in (1, -1):
                changed = [array.copy() for array in inputs]
                changed[which][index] += sign * change
                output = interact_op.load()(*map(tf.constant, changed)).numpy()
                sums.append(np.sum(output.astype(np.float64) * given.upstream))
            step = (inputs[which][index] + change) - (inputs[which][index] - change)
            expected[index] = (sums[0] - sums[1]) / step
        error = np.abs(gradient - expected).max() / np.abs(expected).max()
        assert error < 1e-4


def dtyped(shape: list[Any] | None, dtype: str = "float32") -> Any:
    return tf.TensorSpec(shape, dtype)


WRONG = {
    "bottom of rank 3": (dtyped([2, 1, 4]), [dtyped([2, 3, 4])], "rank 2"),
    "vectors of rank 2": (dtyped([2, 4]), [dtyped([2, 4])], "rank 3"),
    "another batch": (dtyped([2, 4]), [dtyped([3, 3, 4])], "2 and 3"),
    "another width": (dtyped([2, 4]), [dtyped([2, 3, 4]), dtyped([2, 3, 5])], "4 and 5"),
    "another type": (dtyped([2, 4]), [dtyped([2, 3, 4], "float16")], "float16"),
    "a type without a kernel": (
        dtyped([2, 4], "float64"),
        [dtyped([2, 3, 4], "float64")],
        "float64",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_when_the_graph_is_made(name: str) -> None:
    bottom, vectors, words = WRONG[name]
    interact = interact_op.load()
    with pytest.raises((ValueError, TypeError), match=words):
        tf.function(lambda b, v: interact(b, *v)).get_concrete_function(bottom, vectors)


@pytest.mark.parametrize("name", [name for name in WRONG if "type" not in name])
def test_wrong_inputs_of_shapes_unknown_before_are_refused_when_it_runs(name: str) -> None:
    bottom, vectors, _ = WRONG[name]
    interact = interact_op.load()
    unknown = tf.nest.map_structure(lambda spec: dtyped(None, spec.dtype), [bottom, vectors])
    function = tf.function(lambda b, v: interact(b, *v), input_signature=unknown)
    zeros = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), [bottom, vectors])
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected"):
        function(*zeros)


def test_an_upstream_gradient_of_another_width_is_refused() -> None:
    interact_op.load()
    path = interact_op.BUILD / f"tensorflow-{tf.__version__}" / interact_op.LIBRARY
    operations = tf.load_op_library(str(path))
    bottom, vectors = tf.zeros([2, 4]), tf.zeros([2, 3, 4])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected upstream \[2,16\]"):
        operations.dot_interact_grad(upstream=tf.zeros([2, 24]), bottom=bottom, vectors=[vectors])


def test_static_shapes() -> None:
    interact = interact_op.load()

    @tf.function(input_signature=[dtyped([None, 16]), dtyped([None, 26, 16])])
    def both(bottom: tf.Tensor, vectors: tf.Tensor) -> Any:
        output = interact(bottom, vectors)
        assert output.shape.as_list() == [None, interaction_width(16, 26)]
        gradients = tf.gradients(output, [bottom, vectors])
        assert [g.shape.as_list() for g in gradients] == [[None, 16], [None, 26, 16]]
        return gradients

    both.get_concrete_function()
    unknown = tf.function(interact).get_concrete_function(dtyped(None), dtyped(None))
    assert unknown.outputs[0].shape.rank == 2


@pytest.mark.multi_rank
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_follows_the_losses_of_the_stock_interaction(ranks: int, tmp_path: Path) -> None:
    worker = ["-m", "tests.multi_rank.workers.interact"]
    launch = [] if ranks == 1 else ["horovodrun", "--gloo", "-np", str(ranks)]
    ended = run([*launch, sys.executable, *worker, tmp_path], time_limit=300)
    assert ended.code == 0, ended.output[-3000:]
    for kind, bound in (("losses", 1e-6), ("weights", 1e-5)):
        stock, *others = (
            np.load(tmp_path / f"{kind}.{index}.npy") for index in range(len(SETTINGS))
        )
        for values in others:
            difference = np.abs(values - stock).max() / np.abs(stock).max()
            print(kind, difference)
            assert 0 <= difference < bound


def test_mlps_are_compiled_around_the_operation() -> None:
    """Forward and backward pass of each MLP are clusters that XLA must compile."""
    model = DLRM(
        (8, 4), (8, 1), seed=0, dtype="float32", interact=interact_op.load(), compile_mlps=True
    )
    dense, vectors = tf.ones([2, 3]), tf.ones([2, 5, 4])
    model(dense, vectors)
    weights = [as_tf_variable(weight) for weight in model.trainable_variables]

    @tf.function
    def gradients(dense: tf.Tensor, vectors: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            loss = tf.reduce_sum(model(dense, vectors))
        return tape.gradient(loss, [vectors, *weights])

    graph = gradients.get_concrete_function(dense, vectors).graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}
    compiled = [
        functions[node.attr["f"].func.name]
        for node in graph.node
        if node.op in ("PartitionedCall", "StatefulPartitionedCall")
        and functions[node.attr["f"].func.name].attr["_XlaMustCompile"].b
    ]
    kinds = [{node.op for node in function.node_def} for function in compiled]
    assert sum("ReluGrad" in kind for kind in kinds) == 2
    assert sum("Relu" in kind and "ReluGrad" not in kind for kind in kinds) == 2
    assert {node.op for node in graph.node} >= {"DotInteract", "DotInteractGrad"}
    outside = {node.op for node in graph.node}
    assert not outside & {"MatMul", "Relu", "ReluGrad"}
