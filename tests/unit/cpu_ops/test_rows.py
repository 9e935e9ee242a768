"""Sums of vectors by row against NumPy in float64, and bit for bit against TensorFlow's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm import cpu_ops
from tests.unit.cpu_ops.test_fused_mlp import _built

__all__ = ["_built"]
SEED = 20261127


@pytest.mark.parametrize(
    ("count", "rows", "width"), [(0, 0, 4), (0, 3, 4), (5000, 700, 16), (300, 1, 7), (40, 90, 128)]
)
def test_sums(count: int, rows: int, width: int) -> None:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    vectors = generator.standard_normal((count, width), np.float32)
    row_of = generator.integers(0, max(rows, 1), count, np.int32)
    expected = np.zeros((rows, width))
    np.add.at(expected, row_of, vectors.astype(np.float64))
    found = cpu_ops.load().sum_rows(vectors, row_of, rows)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)
    stock = tf.math.unsorted_segment_sum(vectors, row_of, rows)
    assert found.numpy().tobytes() == stock.numpy().tobytes()


@pytest.mark.parametrize(
    ("shape", "row_of", "rows"),
    [
        ((2, 4), [0, 3], 3),
        ((2, 4), [0, -1], 3),
        ((2, 4), [0], 3),
        ((2,), [0, 1], 3),
        ((2, 4), [0, 1], -1),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], row_of: list[int], rows: int) -> None:
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        cpu_ops.load().sum_rows(tf.zeros(shape), tf.constant(row_of, tf.int32), rows)
