"""The tables of one rank: first values, routes, lookups, updates and the policies for bad ids."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import BAD_ID_POLICIES, local_rows
from dlrm.embedding import FusedTable, RowLayout, create
from dlrm.embedding.fused_table import uniform
from dlrm.embedding.variable_storage import VariableStorage
from tests.support.thread_ranks import on_ranks

VOCAB_SIZES = (11, 1, 400)
SEED = 20261121


def embedding(**options):
    return create("alltoall", FusedTable(VOCAB_SIZES, 6, SEED), Collective(), **options)


def rows_of(tables):
    return tables.read_rows(0, tables.local_rows)


def initial_rows(table, rank, size):
    """What the rank's storage holds before any update."""
    storage = VariableStorage(RowLayout(table), rank, size)
    return storage.read_rows(0, local_rows(table.rows, rank, size))


def splitmix64(counter, seed):
    """The generator on Python's own integers."""
    mask = 2**64 - 1
    golden = 0x9E3779B97F4A7C15
    z = (seed * golden * golden + (counter + 1) * golden) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_uniform_is_splitmix64():
    counters = np.array([0, 1, 2, 10**12, 2**63], np.uint64)
    expected = [(splitmix64(int(c), SEED) >> 40) / 2**23 - 1 for c in counters]
    np.testing.assert_array_equal(uniform(tf.constant(counters), SEED).numpy(), expected)


def test_uniform_is_uniform():
    values = uniform(tf.cast(tf.range(200_000), tf.uint64), SEED).numpy()
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1 / 3) < 0.01
    assert values.min() >= -1
    assert values.max() < 1
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_rank_holds_its_share_and_all_shares_make_the_table(size):
    table = FusedTable(VOCAB_SIZES, 6, SEED)
    whole = initial_rows(table, 0, 1)
    for rank in range(size):
        share = initial_rows(table, rank, size)
        np.testing.assert_array_equal(share, whole[rank::size])


def test_first_values_are_bounded_by_their_own_table():
    whole = initial_rows(FusedTable(VOCAB_SIZES, 64, SEED), 0, 1)
    for rows, part in zip(VOCAB_SIZES, np.split(whole, np.cumsum(VOCAB_SIZES)[:-1])):
        bound = rows**-0.5
        assert np.abs(part).max() <= bound
        assert np.abs(part).max() > 0.9 * bound


def test_first_values_in_a_given_range():
    """The same numbers in every table, scaled to the range instead of to the table's rows."""
    table = FusedTable(VOCAB_SIZES, 64, SEED, initial_range=0.25)
    counters = tf.reshape(tf.range(sum(VOCAB_SIZES) * 64, dtype=tf.int64), [-1, 64])
    expected = uniform(tf.cast(counters, tf.uint64), SEED).numpy() * np.float32(0.25)
    np.testing.assert_array_equal(initial_rows(table, 0, 1), expected)


def test_a_table_larger_than_a_chunk(monkeypatch):
    table = FusedTable(VOCAB_SIZES, 6, SEED)
    whole = initial_rows(table, 0, 1)
    monkeypatch.setattr("dlrm.embedding.variable_storage.INITIAL_CHUNK", 6 * 10)
    np.testing.assert_array_equal(initial_rows(table, 0, 1), whole)


def test_more_ranks_than_rows():
    storage = VariableStorage(RowLayout(FusedTable((2,), 4, SEED)), 5, 8)
    assert storage.read_rows(0, 0).shape == (0, 4)
    assert storage.read(tf.zeros([0], storage.key_dtype)).shape == (0, 4)


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
def test_lookup_and_update_against_numpy(groups):
    rng = np.random.default_rng(SEED)
    tables = embedding(table_groups=groups)
    before = rows_of(tables)
    ids = (rng.random((32, 3)) * VOCAB_SIZES).astype(np.int32)
    keys = ids + tables.table.offsets
    lookup = tables.lookup(tables.route(tf.constant(ids)))
    vectors = tf.concat(lookup.vectors, 1).numpy()
    np.testing.assert_array_equal(vectors, before[keys])

    gradient = rng.standard_normal((32, 3, 6)).astype(np.float32)
    sizes = [group.shape[1] for group in lookup.vectors]
    assert len(sizes) == min(groups, len(VOCAB_SIZES))
    tables.update(lookup, tf.split(tf.constant(gradient), sizes, axis=1), tf.constant(0.1))
    expected = before.astype(np.float64)
    np.subtract.at(expected, keys.ravel(), 0.1 * gradient.reshape(-1, 6).astype(np.float64))
    np.testing.assert_allclose(rows_of(tables), expected, atol=1e-6)
    untouched = np.setdiff1d(np.arange(len(before)), keys)
    np.testing.assert_array_equal(rows_of(tables)[untouched], before[untouched])


@pytest.mark.parametrize("size", [1, 3])
def test_ids_for_each_group_of_tables_in_numbers_of_their_own(size):
    """As sequences need them: many items for each user. A rank, and a group, may have none."""
    table = FusedTable(VOCAB_SIZES, 6, SEED)
    rng = np.random.default_rng(SEED)
    counts = [[4, 0, 30], [0, 0, 0], [1, 5, 7]][:size]
    ids = [
        [(rng.random((n, 1)) * rows).astype(np.int32) for n, rows in zip(ns, VOCAB_SIZES)]
        for ns in counts
    ]
    gradients = [[rng.standard_normal((n, 1, 6)).astype(np.float32) for n in ns] for ns in counts]

    def work(collective):
        tables = create("alltoall", table, collective, table_groups=3)
        mine = collective.rank
        lookup = tables.lookup(tables.route([tf.constant(part) for part in ids[mine]]))
        tables.update(lookup, list(map(tf.constant, gradients[mine])), tf.constant(0.1))
        return [part.numpy() for part in lookup.vectors], rows_of(tables)

    before = initial_rows(table, 0, 1)
    after = before.astype(np.float64)
    found = on_ranks(size, work)
    for rank, (vectors, _) in enumerate(found):
        for group, offset in enumerate(table.offsets):
            keys = ids[rank][group] + offset
            np.testing.assert_array_equal(vectors[group], before[keys])
            np.subtract.at(after, keys, 0.1 * gradients[rank][group].astype(np.float64))
    for rank, (_, rows) in enumerate(found):
        np.testing.assert_allclose(rows, after[rank::size], atol=1e-6)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("policy", BAD_ID_POLICIES)
def test_vectors_that_get_no_gradients(policy, size, compress):
    """What an evaluation reads: rows that several samples and ranks ask for, and bad ids."""
    table = FusedTable(VOCAB_SIZES, 6, SEED)
    rng = np.random.default_rng(SEED)
    ids = [rng.integers(-1, [12, 2, 9], (20, 3), np.int32) for _ in range(size)]

    def work(collective):
        tables = create(
            "alltoall", table, collective, table_groups=2, bad_ids=policy, compress=compress
        )
        vectors, bad = tables.fetch(tf.constant(ids[collective.rank]))
        return [part.numpy() for part in vectors], int(bad)

    rows = initial_rows(table, 0, 1)
    last = np.array(VOCAB_SIZES) - 1
    for mine, (vectors, bad) in zip(ids, on_ranks(size, work)):
        outside = (mine < 0) | (mine > last)
        assert bad == (outside.sum() if policy == "error" else 0)
        near = np.clip(mine, 0, last) if policy != "modulo" else mine % VOCAB_SIZES
        expected = rows[near + table.offsets]
        if policy == "zero":
            expected[outside] = 0
        assert [part.shape[1] for part in vectors] == [1, 2]
        np.testing.assert_array_equal(np.concatenate(vectors, 1), expected)


@pytest.mark.parametrize("policy", BAD_ID_POLICIES)
def test_bad_ids(policy):
    tables = embedding(bad_ids=policy)
    before = rows_of(tables)
    ids = np.array([[0, 0, 399], [-1, 0, 400], [10, 7, 0]], np.int32)  # three bad ones
    routes = tables.route(tf.constant(ids))
    assert routes[0].bad.numpy() == (3 if policy == "error" else 0)
    lookup = tables.lookup(routes)
    vectors = lookup.vectors[0].numpy()
    np.testing.assert_array_equal(vectors[0], before[[0, 11, 411]])
    clipped = before[[0, 11, 411]]
    expected = {
        "zero": clipped * [[0], [1], [0]],
        "modulo": before[[10, 11, 12]],  # -1 % 11 is 10, 400 % 400 is 0
    }.get(policy, clipped)
    np.testing.assert_array_equal(vectors[1], expected)
    if policy == "modulo":
        np.testing.assert_array_equal(vectors[2], before[[10, 11, 12]])
        tables.update(lookup, [tf.ones([3, 3, 6])], tf.constant(1.0))
        np.testing.assert_allclose(rows_of(tables)[10], before[10] - 2, atol=1e-6)
    if policy == "zero":
        tables.update(lookup, [tf.ones([3, 3, 6])], tf.constant(1.0))
        after = rows_of(tables)
        np.testing.assert_allclose(after[0], before[0] - 1, atol=1e-6)  # by sample 0, not sample 1
        np.testing.assert_allclose(after[11], before[11] - 2, atol=1e-6)  # sample 2's id 7 is bad


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_vectors_travel_in_16_bits_and_rows_stay_in_32(dtype):
    tables = embedding(exchange_dtype=dtype)
    before = rows_of(tables)
    lookup = tables.lookup(tables.route(tf.constant([[1, 0, 5]], tf.int32)))
    (vectors,) = lookup.vectors
    assert vectors.dtype == dtype
    np.testing.assert_allclose(
        tf.cast(vectors, tf.float32).numpy()[0], before[[1, 11, 17]], rtol=1e-2
    )
    # The row itself never takes the way through 16 bits.
    tables.update(lookup, [tf.zeros([1, 3, 6], dtype)], tf.constant(1.0))
    np.testing.assert_array_equal(rows_of(tables), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_one_row_are_summed_in_float32(dtype):
    tables = embedding(exchange_dtype=dtype)
    before = rows_of(tables)
    lookup = tables.lookup(tables.route(tf.zeros([5000, 3], tf.int32)))
    tables.update(lookup, [tf.ones([5000, 3, 6], dtype)], tf.constant(1.0))
    # 16-bit sums of ones stay at 2048 or 256.
    np.testing.assert_allclose(rows_of(tables)[0], before[0] - 5000, rtol=1e-6)
