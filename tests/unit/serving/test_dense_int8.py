"""The dense part in int8: by hand, and within the bound of its rounding."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dlrm.checkpoint.manifest import ModelShape
from serving.calibration import Calibration, ColumnRanges, sum_of_weights
from serving.dense_int8 import input_scales, quantise
from serving.dense_weights import layers
from tests.support.checkpoints import random_weights

MODEL = ModelShape(5, (7, 3, 2), 4, (6, 4), (8, 1))
LAYERS = [(mlp, number) for mlp, number, _, _ in layers(MODEL)]


@pytest.fixture(name="dice")
def random_dice():
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def ranges(low, high):
    return ColumnRanges(np.array(low, np.float32), np.array(high, np.float32))


def calibration(weights, of_layers, model=MODEL):
    return Calibration(model, 1, sum_of_weights(weights), "data", 1, "minmax", of_layers)


def random_ranges(dice, weights):
    """A range for each column; the first column is always zero, the second one above zero."""
    found = {}
    for mlp, number in LAYERS:
        columns = len(weights[f"{mlp}_kernel_{number}"])
        low = -dice.random(columns) * 10.0 ** dice.integers(-3, 2, columns)
        high = dice.random(columns) * 10.0 ** dice.integers(-3, 2, columns)
        low[:2] = 0, 0.5
        high[:2] = 0, 1
        found[f"{mlp}_{number}"] = ranges(low, high)
    return found


def apply(tensors, mlp, number, values):
    """A layer without its ReLU, in float64: whole numbers, then the scales."""
    scale, zero = (tensors[f"{mlp}_input_{part}_{number}"] for part in ("scale", "zero"))
    steps = np.clip(np.rint(values / scale.astype(np.float64)) + zero, 0, 255) - zero
    sums = steps @ tensors[f"{mlp}_kernel_{number}"].astype(np.float64)
    return sums * tensors[f"{mlp}_kernel_scale_{number}"] + tensors[f"{mlp}_bias_{number}"]


def test_scales_by_hand():
    # 0 to 2.55 in steps of 0.01; -1.006 to 1.544 likewise, zero nearest to step 101; 1 to 5.1 from
    # zero on, and -5.1 to -1 up to zero.
    scale, zero = input_scales(ranges([0, -1.006, 1, -5.1], [2.55, 1.544, 5.1, -1]))
    assert scale == pytest.approx([0.01, 0.01, 0.02, 0.02])
    assert zero.tolist() == [0, 101, 0, 255]
    assert (scale.dtype, zero.dtype) == (np.float32, np.int32)


def test_a_column_that_is_always_zero_has_none():
    scale, zero = input_scales(ranges([0, -1, 0, -1e-44], [0, 1.55, 5.1, 0]))
    assert scale == pytest.approx([0, 0.01, 0.02, 0])
    assert zero.tolist() == [0, 100, 0, 0]


def test_a_kernel_by_hand():
    model = ModelShape(2, (1,), 2, (2,), (1,))
    weights = {
        "bottom_kernel_0": np.array([[1.27, 0], [-0.5, 0]], np.float32),
        "bottom_bias_0": np.array([0.25, 1], np.float32),
        "top_kernel_0": np.full((8, 1), 3, np.float32),
        "top_bias_0": np.zeros(1, np.float32),
    }
    of_layers = {
        "bottom_0": ranges([0, -1], [2.55, 1.55]),
        "top_0": ranges([0] * 8, [2.55] * 3 + [0] * 5),
    }
    tensors = quantise(weights, calibration(weights, of_layers, model), model)
    # The padding was always zero.
    assert tensors["top_kernel_0"][:, 0].tolist() == [127] * 3 + [0] * 5
    assert tensors["top_input_scale_0"] == pytest.approx([0.01] * 3 + [1] * 5)
    # Folded with 0.01: 0.0127 and -0.005, in steps of 0.0127 / 127 = 0.0001.
    assert tensors["bottom_kernel_0"].tolist() == [[127, 0], [-50, 0]]
    assert tensors["bottom_kernel_scale_0"] == pytest.approx([0.0001, 1])
    # 1.0 is step 100; 0.5 is step 50 above its zero: 127 * 100 - 50 * 50 = 10,200 steps.
    found = apply(tensors, "bottom", 0, np.array([[1, 0.5]]))
    assert found == pytest.approx(np.array([[10200 * 0.0001 + 0.25, 1]]))


def test_names_types_and_shapes():
    weights = random_weights(MODEL, seed=2)
    tensors = quantise(weights, calibration(weights, random_ranges_of(2, weights)), MODEL)
    expected = {}
    for mlp, number in LAYERS:
        inputs, outputs = weights[f"{mlp}_kernel_{number}"].shape
        expected[f"{mlp}_kernel_{number}"] = (np.int8, (inputs, outputs))
        expected[f"{mlp}_bias_{number}"] = (np.float32, (outputs,))
        expected[f"{mlp}_kernel_scale_{number}"] = (np.float32, (outputs,))
        expected[f"{mlp}_input_scale_{number}"] = (np.float32, (inputs,))
        expected[f"{mlp}_input_zero_{number}"] = (np.int32, (inputs,))
    assert {name: (value.dtype, value.shape) for name, value in tensors.items()} == expected
    for mlp, number in LAYERS:
        assert np.array_equal(tensors[f"{mlp}_bias_{number}"], weights[f"{mlp}_bias_{number}"])


def random_ranges_of(seed, weights):
    return random_ranges(np.random.default_rng(seed), weights)


def test_what_lies_within_the_ranges_is_off_by_no_more_than_the_rounding(dice):
    weights = random_weights(MODEL, seed=int(dice.integers(1000)))
    of_layers = random_ranges(dice, weights)
    tensors = quantise(weights, calibration(weights, of_layers), MODEL)
    for mlp, number in LAYERS:
        low, high = of_layers[f"{mlp}_{number}"]
        values = dice.uniform(low, high, (200, len(low)))
        kernel = weights[f"{mlp}_kernel_{number}"].astype(np.float64)
        exact = values @ kernel + weights[f"{mlp}_bias_{number}"]
        scale = tensors[f"{mlp}_input_scale_{number}"].astype(np.float64)
        step = tensors[f"{mlp}_kernel_scale_{number}"]  # of what a column's own step is worth
        # Each value is off by half a step at most (by one where the range ends between two), and
        # each weight by half a step of its output.
        of_values = scale @ np.abs(kernel)
        of_weights = (np.abs(values) / scale + 1).sum(axis=1, keepdims=True) * step / 2
        error = np.abs(apply(tensors, mlp, number, values) - exact)
        assert (error <= 1.001 * (of_values + of_weights)).all(), (mlp, number)
        assert error.max() > 0


def test_zero_is_exact(dice):
    weights = random_weights(MODEL, seed=1)
    tensors = quantise(weights, calibration(weights, random_ranges(dice, weights)), MODEL)
    for mlp, number in LAYERS:
        zeros = np.zeros((1, len(weights[f"{mlp}_kernel_{number}"])))
        found = apply(tensors, mlp, number, zeros)[0]
        assert np.array_equal(found, weights[f"{mlp}_bias_{number}"].astype(np.float64))


def test_the_padding_does_not_coarsen_the_kernel():
    weights = random_weights(MODEL, seed=1)
    of_layers = random_ranges_of(1, weights)
    of_layers["top_0"].low[:], of_layers["top_0"].high[:] = 0, 1
    of_layers["top_0"].high[10:] = 0
    plain = quantise(weights, calibration(weights, of_layers), MODEL)["top_kernel_0"]
    weights["top_kernel_0"][10:] = 1e6  # never trained
    other = quantise(weights, calibration(weights, of_layers), MODEL)["top_kernel_0"]
    assert np.array_equal(plain, other)


def test_other_weights_are_refused():
    weights = random_weights(MODEL, seed=1)
    of_others = calibration(random_weights(MODEL, seed=2), random_ranges_of(1, weights))
    with pytest.raises(ValueError, match="found one of others .* make a new one with"):
        quantise(weights, of_others, MODEL)
