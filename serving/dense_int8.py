"""The dense part in int8: weights and input ranges in whole numbers of one byte.

A layer computes, with x its input, q the input's bytes and K the kernel's,

    q_j = clip(rint(x_j / s_j) + z_j, 0, 255)
    y_o = c_o * sum_j (q_j - z_j) * K_jo + b_o

where every column j of the input has a scale s and a zero z, and every output o a scale c. The
scales of the columns are folded into the kernel, K_jo = rint(W_jo s_j / c_o), so that the sum is of
whole numbers. Cross layers stay float32: what reaches the later ones are products of many factors,
and their sum goes into all that follows. Arrays in, arrays out: the files, and what computes with
them, are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape
from serving.calibration import Calibration, ColumnRanges
from serving.dense_weights import cross_shapes, layers

INPUT_LEVELS = 255
KERNEL_LEVELS = 127


def quantise(
    dense: Mapping[str, NDArray[Any]], calibration: Calibration, model: ModelShape
) -> dict[str, NDArray[Any]]:
    """Quantises the dense weights.

    Args:
        dense: The kernels and biases of a checkpoint, float32, by name.
        calibration: The ranges of the layers' inputs, seen with these weights.
        model: The shape of the model.

    Returns:
        For each layer, such as the bottom MLP's first: `bottom_kernel_0` int8 [I, O],
        `bottom_bias_0` float32 [O], `bottom_kernel_scale_0` float32 [O], `bottom_input_scale_0`
        float32 [I] and `bottom_input_zero_0` int32 [I]; the weights of cross layers as they are.

    Raises:
        ValueError: The calibration is of other weights.
    """
    calibration.check(dense, model)
    result: dict[str, NDArray[Any]] = {name: dense[name] for name in cross_shapes(model)}
    for mlp, number, _, _ in layers(model):
        kernel, bias = f"{mlp}_kernel_{number}", f"{mlp}_bias_{number}"
        scale, zero = input_scales(calibration.ranges[f"{mlp}_{number}"])
        # What was always zero, such as the interaction's padding, gets no weight: the weights of
        # the padding were never trained, and could set the scale of an output.
        result[kernel], kernel_scale = _quantised_kernel(dense[kernel], scale)
        scale[scale == 0] = 1
        result[bias] = np.asarray(dense[bias], np.float32)
        result[f"{mlp}_kernel_scale_{number}"] = kernel_scale
        result[f"{mlp}_input_scale_{number}"] = scale
        result[f"{mlp}_input_zero_{number}"] = zero
    return result


def input_scales(ranges: ColumnRanges) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The scale and the zero of each column of a layer's input.

    Zero is always among the values that a byte stands for exactly.

    Args:
        ranges: The range of each column.

    Returns:
        Scales, float32 [I], 0 for a column that was always zero; zeros, int32 [I], from 0 to 255.
    """
    low = np.minimum(ranges.low.astype(np.float64), 0)
    high = np.maximum(ranges.high.astype(np.float64), 0)
    scale = ((high - low) / INPUT_LEVELS).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 0  # smaller ones have lost digits
    zero = np.clip(np.rint(-low / np.where(scale > 0, scale, 1)), 0, INPUT_LEVELS)
    return scale, zero.astype(np.int32)


def _quantised_kernel(
    kernel: NDArray[Any], input_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A kernel's bytes, int8 [I, O], and the scale of each output, float32 [O]."""
    folded = kernel.astype(np.float64) * input_scale[:, None]
    scale = (np.abs(folded).max(axis=0) / KERNEL_LEVELS).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1
    # The scale is rounded to float32, so the largest weight may round to one more.
    steps = np.clip(np.rint(folded / scale), -KERNEL_LEVELS, KERNEL_LEVELS)
    return steps.astype(np.int8), scale
