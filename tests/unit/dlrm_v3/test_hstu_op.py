"""HSTU's fused operations against float64 NumPy, at every instruction set; their masks."""

from __future__ import annotations

import ctypes
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from dlrm_v3 import hstu_op
from tests.support import hstu_ops as reference
from tests.support.guarded import Guarded, dtype_of
from tests.support.hstu_ops import Doubles, Settings
from tests.support.processes import run

SEED = 20261127
BOUNDS = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
CODES = {"float32": 0, "float16": 1, "bfloat16": 2}
LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}
PADDING = 3  # rows behind the last offset

# Heads, dimensions, groups of the norm; some smaller than a vector, some no multiple of it. With a
# smaller epsilon the norm would hide the length of a token's only value, and with it the gradients.
SHAPES = {
    "whole vectors": Settings(2, 32, 48, 1 / 50, 1, 1e-3),
    "one norm a head": Settings(2, 64, 32, 1 / 50, 2, 1e-3),
    "odd": Settings(3, 5, 7, 1 / 50, 1, 1e-3),
    "odd groups": Settings(3, 19, 33, 1 / 50, 3, 1e-3),
    "one value": Settings(1, 1, 1, 1 / 50, 1, 1e-1),
}
# Rows of each request, and how many of them are targets: none, one, all, blocks and their edges.
REQUESTS = {
    "empty ones": ([0, 3, 0, 0, 5, 0], [0, 1, 0, 0, 0, 0]),
    "none": ([], []),
    "one token": ([1, 1, 1], [0, 1, 0]),
    "only targets": ([9, 70, 1], [9, 70, 1]),
    "no targets": ([63, 64, 65, 31, 33], [0, 0, 0, 0, 0]),
    "edges of blocks": ([65, 128, 129, 192, 71], [1, 64, 65, 63, 7]),
    "long": ([3, 700], [2, 90]),
}
LONGEST = ([2340], [37])  # more keys than an item of work has, in all eight of them


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=dlrm_v3/hstu_op"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


class Case(NamedTuple):
    """The inputs of gated attention, as the type holds them, and the gradient of its output."""

    settings: Settings
    projected: Any
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    offsets: NDArray[np.int32]
    targets: NDArray[np.int32]
    upstream: Any

    def doubles(self) -> tuple[Any, ...]:
        projected, gamma, beta = (
            array.astype(np.float64) for array in (self.projected, self.gamma, self.beta)
        )
        return projected, gamma, beta, self.offsets, self.targets, self.settings

    def output(self) -> Doubles:
        return reference.gated_attention(*self.doubles())

    def expected(self) -> list[Doubles]:
        """The output, and the gradients of projected, gamma and beta."""
        upstream = self.upstream.astype(np.float64)
        gradients = reference.gated_attention_gradients(*(*self.doubles(), upstream))
        return [self.output(), *gradients]


def case(settings: Settings, requests: Any, dtype: str = "float32") -> Case:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    rows, targets = requests
    offsets = np.cumsum([0, *rows]).astype(np.int32)
    count = int(offsets[-1]) + PADDING
    kind = dtype_of(dtype)
    return Case(
        settings,
        (1.5 * generator.standard_normal([count, settings.columns])).astype(kind),
        (1 + 0.3 * generator.standard_normal(settings.width)).astype(np.float32),
        generator.standard_normal(settings.width).astype(np.float32),
        offsets,
        np.array(targets, np.int32),
        generator.standard_normal([count, 3 * settings.width]).astype(kind),
    )


def assert_close(found: Any, expected: Doubles, dtype: str) -> None:
    assert found.shape == expected.shape
    assert np.isfinite(found.astype(np.float64)).all()  # also what nobody wrote
    error = np.linalg.norm(found.astype(np.float64) - expected)
    assert error <= BOUNDS[dtype] * np.linalg.norm(expected)


def assert_columns_close(found: Any, expected: Doubles, widths: list[int], dtype: str) -> None:
    """Each part of the columns by itself: a small one must not hide behind a large one."""
    for own, other in zip(
        *(np.split(a, np.cumsum(widths)[:-1], axis=1) for a in (found, expected))
    ):
        assert_close(own, other, dtype)


class Threads(ctypes.Structure):
    TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, TASK, ctypes.c_void_p)
    _fields_ = [("count", ctypes.c_int64), ("run", RUN), ("pool", ctypes.c_void_p)]


class Attention(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("heads", "attention_dim", "value_dim", "groups")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
        *((name, ctypes.c_int64) for name in ("rows", "requests")),
        *((name, ctypes.c_void_p) for name in ("offsets", "projected", "gamma", "beta")),
        *((name, ctypes.c_void_p) for name in ("targets", "history", "history_offsets")),
        ("history_rows", ctypes.c_int64),
    ]


class AttentionGradient(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("output", "upstream", "projected", "history", "gamma", "beta")
    ]


class Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("type", "swish")),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "gamma", "beta")),
    ]


class DropoutRows(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        ("threshold", ctypes.c_uint32),
        ("factor", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "keys")),
    ]


@functools.cache
def kernels() -> ctypes.CDLL:
    hstu_op.load()
    return ctypes.CDLL(str(hstu_op.BUILD / f"tensorflow-{tf.__version__}" / hstu_op.LIBRARY))


def threads(count: int) -> Threads:
    """`count` threads, which all run tasks at the same time."""

    def run_all(_: Any, tasks: int, task: Any, argument: Any) -> None:
        meet = threading.Barrier(tasks)

        def one(number: int) -> None:
            meet.wait()
            task(argument, number)

        with ThreadPoolExecutor(tasks) as pool:
            list(pool.map(one, range(tasks)))

    return Threads(count, Threads.RUN(run_all), None)


def needs(level: str) -> int:
    if LEVELS[level] > kernels().hstu_cpu_level():
        pytest.skip(f"this CPU has no {level}")
    return LEVELS[level]


def address(array: Any) -> int:
    return array.ctypes.data


def call(name: str, level: int, count: int, *arguments: Any) -> None:
    passed = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    passed = [ctypes.c_void_p(address(a)) if isinstance(a, np.ndarray) else a for a in passed]
    assert getattr(kernels(), name)(level, ctypes.byref(threads(count)), *passed) == 0


def described(given: Case, dtype: str) -> Attention:
    s = given.settings
    return Attention(
        CODES[dtype],
        *(s.heads, s.attention_dim, s.value_dim, s.groups, s.scale, s.epsilon),
        *(len(given.projected), len(given.targets)),
        *map(address, (given.offsets, given.projected, given.gamma, given.beta, given.targets)),
    )


def attend(level: int, given: Case, dtype: str, count: int = 1) -> list[Any]:
    """The output, and the gradients of projected, gamma and beta."""
    attention = described(given, dtype)
    output = Guarded(given.upstream.shape, dtype)
    call("hstu_cpu_attention", level, count, attention, output.values)
    gradients = [Guarded(given.projected.shape, dtype)]
    gradients += [Guarded(given.gamma.shape, "float32") for _ in range(2)]
    projected, gamma, beta = (address(guarded.values) for guarded in gradients)
    above = address(output.values), address(given.upstream)
    gradient = AttentionGradient(*above, projected, None, gamma, beta)
    call("hstu_cpu_attention_gradient", level, count, attention, gradient)
    for guarded in (output, *gradients):
        guarded.assert_margins_untouched()
    return [output.values, *(g.values for g in gradients)]


def assert_attention_close(found: list[Any], expected: list[Doubles], given: Case) -> None:
    """Output and gradients, each part of the columns by itself."""
    s, dtype = given.settings, given.projected.dtype.name
    queries = s.heads * s.attention_dim
    assert_columns_close(found[0], expected[0], [s.width] * 3, dtype)
    assert_columns_close(found[1], expected[1], [s.width, s.width, queries, queries], dtype)
    for own, other in zip(found[2:], expected[2:]):
        assert_close(own, other, dtype)
    for padded in found[:2]:
        assert not padded[given.offsets[-1] :].astype(np.float32).any()


def levels() -> list[int]:
    """The instruction sets of this CPU."""
    return list(range(kernels().hstu_cpu_level() + 1))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_and_its_gradients(dtype: str, shape: str) -> None:
    for name, requests in REQUESTS.items():
        given = case(SHAPES[shape], requests, dtype)
        expected = given.expected()
        for level in levels():
            print(name, "level", level)
            assert_attention_close(attend(level, given, dtype), expected, given)


def test_attention_of_one_long_request() -> None:
    given = case(Settings(1, 8, 16, 1 / 500, 1, 1e-3), LONGEST)
    expected = given.expected()
    for level in levels():
        assert_attention_close(attend(level, given, "float32", 2), expected, given)


@pytest.mark.parametrize("level", LEVELS)
def test_threads_change_no_bit(level: str) -> None:
    given = case(Settings(2, 32, 32, 1 / 500, 1, 1e-6), ([900, 0, 40, 1300], [20, 0, 40, 0]))
    one, *others = (attend(needs(level), given, "float32", count) for count in (1, 2, 2, 5))
    for other in others:
        for own, found in zip(one, other):
            np.testing.assert_array_equal(own, found)


def test_large_products_neither_overflow_nor_vanish() -> None:
    given = case(SHAPES["whole vectors"], REQUESTS["edges of blocks"])
    larger = given._replace(projected=given.projected * np.float32(20))
    with np.errstate(over="ignore"):
        expected = larger.expected()
    for level in levels():
        assert_attention_close(attend(level, larger, "float32"), expected, larger)


@pytest.mark.parametrize("level", LEVELS)
def test_a_target_changes_no_other_row_and_the_future_no_past(level: str) -> None:
    rows, count = 150, 20
    given = case(SHAPES["whole vectors"], ([rows, 40], [count, 3]))
    before = attend(needs(level), given, "float32")[0]
    for changed in (0, 63, 64, 100, rows - count - 1, rows - count, rows - 1):
        projected = given.projected.copy()
        projected[changed] *= -2
        after = attend(needs(level), given._replace(projected=projected), "float32")[0]
        expected = np.zeros(len(after), bool)
        expected[:rows] = reference.seen(rows, count)[:, changed]
        np.testing.assert_array_equal((after != before).any(axis=1), expected)


class Targets(NamedTuple):
    """The targets of a case, and their requests' histories; with rows behind the last offsets."""

    case: Case
    history: Any
    history_offsets: NDArray[np.int32]


def targets_alone(given: Case) -> Targets:
    s = given.settings
    places = rows_of_targets(given)
    before = ~places
    before[given.offsets[-1] :] = False
    v = given.projected[:, s.width : 2 * s.width]
    k = given.projected[:, given.projected.shape[1] - s.heads * s.attention_dim :]
    history = np.concatenate([v, k], axis=1)[before]
    places[given.offsets[-1] :] = True
    lengths = np.diff(given.offsets) - given.targets
    own = given._replace(
        projected=given.projected[places],
        offsets=np.cumsum([0, *given.targets]).astype(np.int32),
        upstream=given.upstream[places],
    )
    padded = np.concatenate([history, np.ones([PADDING, history.shape[1]], history.dtype)])
    return Targets(own, padded, np.cumsum([0, *lengths]).astype(np.int32))


def expected_of_targets(given: Case) -> list[Doubles]:
    """The output, and the gradients of projected, history, gamma and beta."""
    s = given.settings
    places = rows_of_targets(given)
    upstream = np.where(places[:, None], given.upstream, given.upstream.dtype.type(0))
    output, projected, gamma, beta = given._replace(upstream=upstream).expected()
    whole = (
        projected[:, s.width : 2 * s.width],
        projected[:, 2 * s.width + s.heads * s.attention_dim :],
    )
    history = np.concatenate(whole, axis=1)[: given.offsets[-1]][~places[: given.offsets[-1]]]
    return [output[places], projected[places], history, gamma, beta]


def rows_of_targets(given: Case) -> NDArray[np.bool_]:
    places = np.zeros(len(given.projected), bool)
    for end, count in zip(given.offsets[1:], given.targets):
        places[end - count : end] = True
    return places


def attend_of_targets(level: int, targets: Targets, dtype: str) -> list[Any]:
    """As `expected_of_targets`, with the rows behind the last offsets."""
    given, history, history_offsets = targets
    attention = described(given, dtype)
    attention.targets = None
    attention.history, attention.history_offsets = address(history), address(history_offsets)
    attention.history_rows = len(history)
    output = Guarded(given.upstream.shape, dtype)
    call("hstu_cpu_attention", level, 2, attention, output.values)
    gradients = [Guarded(array.shape, dtype) for array in (given.projected, history)]
    gradients += [Guarded(given.gamma.shape, "float32") for _ in range(2)]
    arrays = output.values, given.upstream, *(guarded.values for guarded in gradients)
    gradient = AttentionGradient(*map(address, arrays))
    call("hstu_cpu_attention_gradient", level, 2, attention, gradient)
    for guarded in (output, *gradients):
        guarded.assert_margins_untouched()
    return [output.values, *(guarded.values for guarded in gradients)]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_attention_of_targets_to_a_kept_history(dtype: str) -> None:
    for shape in SHAPES.values():
        for requests in REQUESTS.values():
            given = case(shape, requests, dtype)
            targets = targets_alone(given)
            expected = expected_of_targets(given)
            for level in levels():
                found = attend_of_targets(level, targets, dtype)
                for own, other in zip(found, expected):
                    padding = own[len(other) :]
                    assert_close(own[: len(other)], other, dtype)
                    assert not padding.astype(np.float32).any()


class NormCase(NamedTuple):
    """The inputs of the layer norm, and the gradient of its output."""

    x: Any
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    upstream: Any


def norm_case(rows: int, width: int, dtype: str) -> NormCase:
    generator = np.random.default_rng(SEED)
    x, upstream = generator.standard_normal([2, rows, width]).astype(dtype_of(dtype))
    gamma, beta = generator.standard_normal([2, width]).astype(np.float32)
    return NormCase(x, gamma + 1, beta, upstream)


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_layer_norm_and_its_gradients(level: str, dtype: str, swish: bool) -> None:
    settings: Any = {"epsilon": 1e-3, "swish": swish}
    for rows, width in ((0, 3), (1, 1), (1, 16), (37, 7), (5, 512), (4200, 33)):
        given = norm_case(rows, width, dtype)
        norm = Norm(
            *(CODES[dtype], swish, rows, width, settings["epsilon"]),
            *map(address, (given.x, given.gamma, given.beta)),
        )
        output, x = Guarded((rows, width), dtype), Guarded((rows, width), dtype)
        gamma, beta = Guarded((width,), "float32"), Guarded((width,), "float32")
        call("hstu_cpu_norm", needs(level), 2, norm, output.values)
        found = x.values, gamma.values, beta.values
        call("hstu_cpu_norm_gradient", needs(level), 2, norm, given.upstream, *found)
        for guarded in (output, x, gamma, beta):
            guarded.assert_margins_untouched()
        *inputs, upstream = (array.astype(np.float64) for array in given)
        expected = [
            reference.layer_norm(*inputs, **settings),
            *reference.layer_norm_gradients(*inputs, **settings, upstream=upstream),
        ]
        for own, other in zip((output.values, *found), expected):
            assert_close(own, other, dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_dropout_keeps_what_the_hash_says(level: str, dtype: str) -> None:
    generator = np.random.default_rng(SEED)
    rate, factor = 0.2, np.float32(1 / 0.8)
    for rows, width in ((0, 3), (1, 1), (300, 100), (50, 512)):
        x = generator.standard_normal([rows, width]).astype(dtype_of(dtype))
        keys = generator.integers(-(2**63), 2**63 - 1, rows)
        output = Guarded((rows, width), dtype)
        arrays = address(x), address(keys)
        given = DropoutRows(CODES[dtype], rows, width, int(rate * 2**32), factor, *arrays)
        call("hstu_cpu_dropout", needs(level), 2, given, output.values)
        output.assert_margins_untouched()
        kept = reference.kept(keys, width, rate)
        expected = np.where(kept, x.astype(np.float32) * factor, np.float32(0)).astype(x.dtype)
        np.testing.assert_array_equal(output.values, expected)


def test_dropout_is_random_over_rows_columns_and_neighbouring_keys() -> None:
    keys = np.arange(4096, dtype=np.int64)
    kept = reference.kept(keys, 512, 0.2).astype(np.float64) - 0.8
    deviation = np.sqrt(0.2 * 0.8)
    for axis, count in ((0, 4096), (1, 512), (None, kept.size)):
        assert np.abs(kept.mean(axis=axis)).max() < 5 * deviation / np.sqrt(count)
    for other in (np.roll(kept, 1, axis=0), np.roll(kept, 1, axis=1)):
        assert abs((kept * other).mean()) < 5 * deviation**2 / np.sqrt(kept.size)


def test_the_reference_by_finite_differences() -> None:
    given = case(SHAPES["odd groups"], ([7, 0, 5, 2], [3, 0, 0, 2]))
    *inputs, offsets, targets, settings = given.doubles()
    upstream = given.upstream.astype(np.float64)

    def loss(projected: Doubles, gamma: Doubles, beta: Doubles) -> float:
        output = reference.gated_attention(projected, gamma, beta, offsets, targets, settings)
        return float(np.sum(output * upstream))

    generator = np.random.default_rng(SEED)
    for which, gradient in enumerate(given.expected()[1:]):
        for _ in range(40):
            direction = generator.standard_normal(gradient.shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a + step * direction if i == which else a for i, a in enumerate(inputs)]
                ends.append(loss(*moved))
            slope = float(np.sum(gradient * direction))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("swish", [False, True])
def test_the_reference_of_the_norm_by_finite_differences(swish: bool) -> None:
    x, gamma, beta, upstream = (a.astype(np.float64) for a in norm_case(5, 9, "float32"))
    inputs = [x, gamma, beta]
    generator = np.random.default_rng(SEED)
    settings: Any = {"epsilon": 1e-3, "swish": swish}
    gradients = reference.layer_norm_gradients(*inputs, **settings, upstream=upstream)
    for which, gradient in enumerate(gradients):
        direction = generator.standard_normal(gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [a + step * direction if i == which else a for i, a in enumerate(inputs)]
            ends.append(np.sum(reference.layer_norm(*moved, **settings) * upstream))
        slope = np.sum(gradient * direction)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)
