"""HSTU's CUDA kernels, run on this CPU by an emulation, against float64 NumPy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.support import hstu_ops as reference
from tests.support.guarded import Guarded, dtype_of
from tests.support.hstu_ops import Settings
from tests.support.processes import ROOT, run
from tests.unit.dlrm_v3.test_hstu_op import (
    BOUNDS,
    CODES,
    SEED,
    AttentionGradient,
    DropoutRows,
    Norm,
    address,
    assert_attention_close,
    assert_close,
    case,
    described,
    expected_of_targets,
    norm_case,
    targets_alone,
)

pytestmark = pytest.mark.gpu
SHAPES = {
    "whole tiles": Settings(2, 16, 32, 1 / 50, 1, 1e-3),
    "odd": Settings(1, 5, 19, 1 / 50, 1, 1e-3),
    "largest": Settings(1, 128, 128, 1 / 50, 1, 1e-3),
    "one norm a head": Settings(2, 7, 16, 1 / 50, 2, 1e-3),
}
# Blocks have 32 rows of float32 and 64 of 16-bit types.
REQUESTS = ([0, 1, 33, 65, 5, 0, 70], [0, 1, 0, 31, 5, 0, 3])
# Weights and their gradients are rounded to the type before they are multiplied again.
CUDA_BOUNDS = {"float32": BOUNDS["float32"], "float16": 3e-3, "bfloat16": 2e-2, "tf32": 3e-3}
TYPES = [*((name, False) for name in BOUNDS), ("float32", True)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, built for this CPU: each thread of a block is a coroutine."""
    library = tmp_path_factory.mktemp("cuda") / "emulated.so"
    ended = run(
        [
            *("g++", "-std=c++17", "-O2", "-fno-strict-aliasing", "-fPIC", "-shared"),
            f"-I{ROOT / 'tests' / 'emulation' / 'cuda'}",
            *("-x", "c++", ROOT / "dlrm_v3" / "hstu_op" / "cuda_kernels.cu", "-o", library),
        ],
        time_limit=300,
    )
    assert ended.code == 0, ended.output[-3000:]
    return ctypes.CDLL(str(library))


def call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    passed = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    passed = [ctypes.c_void_p(address(a)) if isinstance(a, np.ndarray) else a for a in passed]
    assert function(*passed, None) is None


def scratch(library: ctypes.CDLL, name: str, argument: Any) -> Any:
    function = getattr(library, name)
    function.restype = ctypes.c_int64
    return np.full(function(argument), np.nan, np.float32)


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The bounds that the comparisons use, to be changed for a test."""
    for name in BOUNDS:
        monkeypatch.setitem(BOUNDS, name, CUDA_BOUNDS[name])
    return BOUNDS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tf32"), TYPES)
def test_attention_and_its_gradients(
    emulated: ctypes.CDLL, bounds: dict[str, float], dtype: str, tf32: bool, shape: str
) -> None:
    if tf32:
        bounds["float32"] = CUDA_BOUNDS["tf32"]
    given = case(SHAPES[shape], REQUESTS, dtype)
    attention = described(given, dtype)
    output = Guarded(given.upstream.shape, dtype)
    call(emulated, "hstu_cuda_attention", attention, int(tf32), output.values)
    gradients = [Guarded(given.projected.shape, dtype)]
    gradients += [Guarded(given.gamma.shape, "float32") for _ in range(2)]
    projected, gamma, beta = (address(guarded.values) for guarded in gradients)
    above = address(output.values), address(given.upstream)
    gradient = AttentionGradient(*above, projected, None, gamma, beta)
    room = scratch(emulated, "hstu_cuda_attention_scratch", ctypes.byref(attention))
    call(emulated, "hstu_cuda_attention_gradient", attention, gradient, int(tf32), room)
    for guarded in (output, *gradients):
        guarded.assert_margins_untouched()
    found = [output.values, *(guarded.values for guarded in gradients)]
    assert_attention_close(found, given.expected(), given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.usefixtures("bounds")
def test_attention_of_targets_and_its_gradients(
    emulated: ctypes.CDLL, dtype: str, shape: str
) -> None:
    whole = case(SHAPES[shape], REQUESTS, dtype)
    given, history, history_offsets = targets_alone(whole)
    attention = described(given, dtype)
    attention.targets = None
    attention.history, attention.history_offsets = address(history), address(history_offsets)
    attention.history_rows = len(history)
    output = Guarded(given.upstream.shape, dtype)
    call(emulated, "hstu_cuda_attention", attention, 0, output.values)
    gradients = [Guarded(array.shape, dtype) for array in (given.projected, history)]
    gradients += [Guarded(given.gamma.shape, "float32") for _ in range(2)]
    arrays = output.values, given.upstream, *(guarded.values for guarded in gradients)
    gradient = AttentionGradient(*map(address, arrays))
    room = scratch(emulated, "hstu_cuda_attention_scratch", ctypes.byref(attention))
    call(emulated, "hstu_cuda_attention_gradient", attention, gradient, 0, room)
    for guarded in (output, *gradients):
        guarded.assert_margins_untouched()
    found = [output.values, *(guarded.values for guarded in gradients)]
    for own, other in zip(found, expected_of_targets(whole)):
        assert_close(own[: len(other)], other, dtype)
        assert not own[len(other) :].astype(np.float32).any()


def test_wrong_offsets_write_nothing_outside(emulated: ctypes.CDLL) -> None:
    """On a GPU nobody can look at them before."""
    given = case(SHAPES["odd"], REQUESTS)
    for offsets, targets in (
        ([0, 500, -3, 90, 10**9, 177, -(2**31), 177], [0, 1, 0, 31, 5, 0, 3]),
        (given.offsets, [-5, 10**9, 70, -(10**9), 6, 1, 2]),
    ):
        wrong = given._replace(
            offsets=np.array(offsets, np.int32), targets=np.array(targets, np.int32)
        )
        output = Guarded(given.upstream.shape, "float32")
        call(emulated, "hstu_cuda_attention", described(wrong, "float32"), 0, output.values)
        output.assert_margins_untouched()


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_layer_norm_and_its_gradients(emulated: ctypes.CDLL, dtype: str, swish: bool) -> None:
    settings: Any = {"epsilon": 1e-3, "swish": swish}
    for rows, width in ((0, 3), (1, 1), (37, 7), (5, 200), (1100, 33)):
        given = norm_case(rows, width, dtype)
        arrays = given.x, given.gamma, given.beta
        norm = Norm(CODES[dtype], swish, rows, width, 1e-3, *map(address, arrays))
        output, x = Guarded((rows, width), dtype), Guarded((rows, width), dtype)
        gamma, beta = Guarded((width,), "float32"), Guarded((width,), "float32")
        call(emulated, "hstu_cuda_norm", norm, output.values)
        room = scratch(emulated, "hstu_cuda_norm_scratch", ctypes.c_int64(width))
        found = x.values, gamma.values, beta.values
        call(emulated, "hstu_cuda_norm_gradient", norm, given.upstream, *found, room)
        for guarded in (output, x, gamma, beta):
            guarded.assert_margins_untouched()
        *inputs, upstream = (array.astype(np.float64) for array in given)
        expected = [
            reference.layer_norm(*inputs, **settings),
            *reference.layer_norm_gradients(*inputs, **settings, upstream=upstream),
        ]
        for own, other in zip((output.values, *found), expected):
            assert_close(own, other, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_dropout(emulated: ctypes.CDLL, dtype: str) -> None:
    generator = np.random.default_rng(SEED)
    factor = np.float32(1 / 0.8)
    x = generator.standard_normal([50, 70]).astype(dtype_of(dtype))
    keys = generator.integers(-(2**63), 2**63 - 1, 50)
    output = Guarded((50, 70), dtype)
    arrays = address(x), address(keys)
    given = DropoutRows(CODES[dtype], 50, 70, int(0.2 * 2**32), factor, *arrays)
    call(emulated, "hstu_cuda_dropout", given, output.values)
    output.assert_margins_untouched()
    kept = reference.kept(keys, 70, 0.2)
    expected = np.where(kept, x.astype(np.float32) * factor, np.float32(0)).astype(x.dtype)
    np.testing.assert_array_equal(output.values, expected)
