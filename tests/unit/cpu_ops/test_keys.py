"""Work on keys against NumPy, and bit for bit against TensorFlow's own operations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm import cpu_ops
from tests.unit.cpu_ops.test_fused_mlp import _built

__all__ = ["_built"]
SEED = 20261128
LARGEST = 2**31 - 1
DTYPES = pytest.mark.parametrize("dtype", ["int32", "int64"])


def drawn(count: int, rows: int, dtype: str) -> tf.Tensor:
    """Keys of which some are frequent; those of 64 bits are 2^31 times as large."""
    print("seed", SEED)
    keys = np.random.default_rng(SEED).zipf(1.2, count) * 7919 % rows
    return tf.constant(keys << (31 if dtype == "int64" else 0), dtype)


@DTYPES
@pytest.mark.parametrize("samples", [0, 1, 700])
def test_keys_of_ids(samples: int, dtype: str) -> None:
    print("seed", SEED)
    sizes = np.array([5, 1, 900, LARGEST - 906], dtype)
    offsets = np.array([0, 5, 6, 906], dtype)
    if dtype == "int64":
        sizes[1:], offsets[2:] = LARGEST, np.arange(2) * LARGEST + LARGEST + 5
    generator = np.random.default_rng(SEED)
    ids = (generator.random((samples, 4)) * 1.2 * sizes - 0.1 * sizes).clip(-(2**31), LARGEST)
    ids = ids.astype(dtype)
    keys, outside = cpu_ops.load().keys_of_ids(ids, offsets, sizes)
    safe = ids.clip(0, sizes - 1)
    np.testing.assert_array_equal(keys.numpy(), (safe + offsets).ravel())
    assert int(outside) == np.count_nonzero(safe != ids)


@DTYPES
@pytest.mark.parametrize(
    ("count", "rows"), [(0, 1), (1, 1), (8, 3), (5000, 40), (30_000, 10**6), (9000, LARGEST)]
)
def test_distinct_keys(count: int, rows: int, dtype: str) -> None:
    keys = drawn(count, rows, dtype)
    for found, expected in zip(cpu_ops.load().distinct_keys(keys), tf.unique(keys)):
        assert found.numpy().tobytes() == expected.numpy().tobytes()


@DTYPES
def test_distinct_keys_that_share_a_slot(dtype: str) -> None:
    """Multiples of a power of two: a hash that kept their low bits would take one slot for all."""
    keys = tf.constant(np.concatenate([np.arange(2000) << 20, [0, LARGEST, -1, -1]]), dtype)
    for found, expected in zip(cpu_ops.load().distinct_keys(keys), tf.unique(keys)):
        assert found.numpy().tobytes() == expected.numpy().tobytes()


@DTYPES
@pytest.mark.parametrize("owners", [1, 2, 3, 1000])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_keys_by_owner(count: int, owners: int, dtype: str) -> None:
    keys = drawn(count, LARGEST, dtype).numpy()
    by_owner, order, position, sent = cpu_ops.load().keys_by_owner(keys, owners=owners)
    expected = np.argsort(keys % owners, kind="stable")
    np.testing.assert_array_equal(order.numpy(), expected)
    np.testing.assert_array_equal(by_owner.numpy(), keys[expected])
    np.testing.assert_array_equal(by_owner.numpy()[position.numpy()], keys)
    np.testing.assert_array_equal(sent.numpy(), np.bincount(keys % owners, minlength=owners))


def test_shapes_that_do_not_fit_are_refused() -> None:
    operations = cpu_ops.load()
    two, three = tf.zeros([2], tf.int32), tf.zeros([3], tf.int32)
    for ids, offsets, sizes in ((two, two, two), (two[None], two, three), (two[None], three, two)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            operations.keys_of_ids(ids, offsets, sizes)
    for call in (operations.distinct_keys, lambda keys: operations.keys_by_owner(keys, owners=2)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            call(two[None])
