"""Ids, keys, owners and local rows: small cases worked by hand, and the round trip of every key."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm.distributed import sharding


def test_a_hand_worked_case() -> None:
    offsets = sharding.key_offsets((4, 6, 2))
    np.testing.assert_array_equal(offsets, [0, 4, 10])
    key = 5 + int(offsets[1])  # id 5 of table 1
    assert key == 9
    assert sharding.owner_of(key, 4) == 1
    assert sharding.local_row_of(key, 4) == 2
    assert sharding.key_of(2, 1, 4) == 9
    # Of the keys 0 .. 11, rank 1 of 5 owns 1, 6 and 11.
    assert sharding.local_rows(12, 1, 5) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 6, 50])
def test_each_key_is_owned_once(count: int, size: int) -> None:
    keys = np.arange(count)
    owned = [
        sharding.key_of(np.arange(sharding.local_rows(count, rank, size)), rank, size)
        for rank in range(size)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(owned)), keys)
    for rank, own in enumerate(owned):
        np.testing.assert_array_equal(sharding.owner_of(own, size), np.full(len(own), rank))
        np.testing.assert_array_equal(sharding.local_row_of(own, size), np.arange(len(own)))


def test_tensors_are_taken_too() -> None:
    keys = tf.range(10)
    rows = sharding.local_row_of(keys, 4)
    np.testing.assert_array_equal(sharding.key_of(rows, 0, 4) + sharding.owner_of(keys, 4), keys)
