"""Work on rows against NumPy in float64, and bit for bit against TensorFlow's own operations."""

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


def table_of(rows: int, width: int) -> tf.Variable:
    generator = np.random.default_rng(SEED)
    variable = tf.Variable(generator.standard_normal((rows, width), np.float32))
    tf.gather(variable, [0])  # as every table was before its first step
    return variable


def keys_of(rows: int, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Distinct rows [U], and for each key the position of its row [n]."""
    drawn = np.random.default_rng(SEED + 1).zipf(1.3, count) % rows
    distinct, index = tf.unique(tf.constant(drawn, tf.int32))
    return distinct, index


SIZES = [(50, 0, 4), (50, 300, 16), (9000, 12000, 16), (700, 5000, 7), (300, 2500, 130)]


@pytest.mark.parametrize(("rows", "count", "width"), SIZES)
@pytest.mark.parametrize("state", [0, 3])
@pytest.mark.parametrize("keep", [False, True])
def test_vectors_of_rows(rows: int, count: int, width: int, state: int, keep: bool) -> None:
    print("seed", SEED)
    table, (distinct, index) = table_of(rows, width + state), keys_of(rows, count)
    vectors, stored = cpu_ops.load().read_rows(
        table.handle, distinct, index, width=width, keep=keep
    )
    values = table.numpy()
    assert vectors.numpy().tobytes() == values[distinct][index.numpy(), :width].tobytes()
    expected = values[distinct] if keep else np.zeros((0, width + state))
    np.testing.assert_array_equal(stored.numpy(), expected)


@pytest.mark.parametrize(("rows", "count", "width"), SIZES)
def test_gradient_descent(rows: int, count: int, width: int) -> None:
    print("seed", SEED)
    table, (distinct, index) = table_of(rows, width), keys_of(rows, count)
    before = table.numpy()
    generator = np.random.default_rng(SEED + 2)
    gradients = generator.standard_normal((count, width), np.float32)
    step_size = tf.constant(0.3)
    sums = tf.math.unsorted_segment_sum(gradients, index, tf.size(distinct))
    stock = tf.gather(before, distinct) - step_size * sums
    cpu_ops.load().descend_rows(table.handle, distinct, index, gradients, step_size)
    after = table.numpy()
    assert after[distinct].tobytes() == stock.numpy().tobytes()
    expected = before.astype(np.float64)
    np.subtract.at(expected, distinct.numpy()[index], 0.3 * gradients.astype(np.float64))
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-4)
    untouched = np.setdiff1d(np.arange(rows), distinct)
    assert after[untouched].tobytes() == before[untouched].tobytes()


def test_a_table_that_others_may_share_is_not_written() -> None:
    """Until its rows are gathered once, TensorFlow may hand out the table itself."""
    table = tf.Variable(tf.zeros([3, 4]))
    rows = tf.constant([0], tf.int32)
    with pytest.raises(tf.errors.FailedPreconditionError, match="before"):
        cpu_ops.load().descend_rows(table.handle, rows, rows, tf.zeros([1, 4]), 1.0)


@pytest.mark.parametrize(
    ("rows", "index", "width"),
    [([3], [0], 4), ([-1], [0], 4), ([0], [1], 4), ([0], [-1], 4), ([0], [0], 5)],
)
def test_rows_outside_the_table_are_refused(rows: list[int], index: list[int], width: int) -> None:
    table = table_of(3, 4)
    operations, before = cpu_ops.load(), table.numpy()
    integers = tf.constant(rows, tf.int32), tf.constant(index, tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected"):
        operations.read_rows(table.handle, *integers, width=width, keep=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected"):
        operations.descend_rows(table.handle, *integers, tf.ones([1, width]), 1.0)
    np.testing.assert_array_equal(table.numpy(), before)
