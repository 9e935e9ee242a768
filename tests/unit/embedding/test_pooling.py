"""Bags of ids: pooling and its gradients against NumPy in float64, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import BAD_ID_POLICIES
from dlrm.embedding import FusedTable, create
from dlrm.embedding.pooling_cost import (
    bytes_per_bag,
    distinct_ids,
    partial_sums,
    pooled_at_owner,
)
from dlrm.formats.bags import BagLayout, Bags
from tests.support.bag_data import batch_of, random_bags
from tests.support.thread_ranks import on_ranks

# With `compress`, the bags of table 1, whose few rows repeat, are pooled after the exchange, and
# those of table 3 at the owners of their rows.
SIZES, WIDTH, SEED = (7, 5, 3, 1000), 4, 20261127
SAMPLES, RATE = 12, 0.1
TABLE = FusedTable(SIZES, WIDTH, SEED)


class Case:
    """The bags of a global batch: tables 1 and 3 hold some, tables 0 and 2 one id a sample.

    Args:
        weights: Whether table 1 has weights.
        low: The lowest id of table 3, and how far ids go beyond the others' last.
    """

    def __init__(self, weights=True, low=0):
        rng = np.random.default_rng(SEED)
        self.columns = [
            rng.integers(low, SIZES[0] - low, SAMPLES).astype(np.int32),
            random_bags(rng, 1, SAMPLES, SIZES[1] - low, pooling="mean", weights=weights),
            rng.integers(0, SIZES[2], SAMPLES).astype(np.int32),
            random_bags(rng, 3, SAMPLES, 9, longest=9),  # few ids: many repeat
        ]
        self.layout = BagLayout(("sum", "mean", "sum", "sum"), (1.0, 2.5, 1.0, 4.5), weights)
        self.gradient = rng.normal(size=(SAMPLES, 4, WIDTH)).astype(np.float32)

    def share(self, rank, size):
        """The samples of a rank."""
        count = SAMPLES // size
        bags = batch_of(self.columns, rank * count, (rank + 1) * count)
        return Bags(*map(tf.constant, bags)), self.gradient[rank * count : (rank + 1) * count]

    def entries(self):
        """Yields sample, table, id and the factor of the id's row in the bag's vector."""
        for table, column in enumerate(self.columns):
            for sample in range(SAMPLES):
                if isinstance(column, np.ndarray):
                    yield sample, table, int(column[sample]), 1.0
                    continue
                bag = column.bags[sample]
                weights = column.weights[sample] if column.weights else np.ones(len(bag))
                for value, weight in zip(bag, weights):
                    scale = 1 / len(bag) if column.pooling == "mean" else 1.0
                    yield sample, table, int(value), float(weight) * scale

    def reference(self, rows, policy="clip"):
        """Vectors [samples, tables, width] and new rows after a step of SGD, in float64."""
        rows = rows.astype(np.float64)
        vectors, after = np.zeros((SAMPLES, 4, WIDTH)), rows.copy()
        for sample, table, value, factor in self.entries():
            if policy == "zero" and not 0 <= value < SIZES[table]:
                continue
            near = value % SIZES[table] if policy == "modulo" else value
            key = TABLE.offsets[table] + np.clip(near, 0, SIZES[table] - 1)
            vectors[sample, table] += factor * rows[key]
            after[key] -= RATE * factor * self.gradient[sample, table].astype(np.float64)
        return vectors, after


def trained(case, size, **options):
    """Vectors, those that an evaluation fetches, rows before and after, traffic, and bad ids."""

    def work(collective):
        tables = create("alltoall", TABLE, collective, bag_layout=case.layout, **options)
        before = tables.read_rows(0, tables.local_rows)
        bags, gradient = case.share(collective.rank, size)
        routes = tables.route(bags)
        lookup = tables.lookup(routes)
        fetched, _ = tables.fetch(bags)
        sizes = [part.shape[1] for part in lookup.vectors]
        tables.update(lookup, tf.split(tf.constant(gradient), sizes, axis=1), tf.constant(RATE))
        rows = tables.read_rows(0, tables.local_rows)
        joined = [tf.cast(tf.concat(p, 1), tf.float32).numpy() for p in (lookup.vectors, fetched)]
        return *joined, before, rows, tables.traffic(routes), [int(r.bad) for r in routes]

    vectors, fetched, before, after, traffic, bad = zip(*on_ranks(size, work))
    together = map(np.concatenate, (vectors, fetched))
    return *together, interleaved(before), interleaved(after), traffic, np.sum(bad)


def interleaved(shares):
    """The fused table: key k is row k // N of rank k % N."""
    rows = np.empty((sum(SIZES), WIDTH), np.float32)
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_vectors_and_rows_against_numpy(size, compress, weights):
    case = Case(weights)
    vectors, fetched, before, after, _, _ = trained(case, size, compress=compress, table_groups=2)
    expected, rows = case.reference(before)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(fetched, expected, atol=1e-6)
    np.testing.assert_allclose(after, rows, atol=1e-6)
    assert any(not len(bag) for bag in case.columns[3].bags), "an empty bag"
    used = {int(TABLE.offsets[table] + value) for _, table, value, _ in case.entries()}
    untouched = np.setdiff1d(np.arange(sum(SIZES)), list(used))
    np.testing.assert_array_equal(after[untouched], before[untouched])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("policy", BAD_ID_POLICIES)
def test_bad_ids_in_bags(policy, size):
    case = Case(low=-2)
    vectors, fetched, before, after, _, bad = trained(case, size, bad_ids=policy, compress=True)
    outside = sum(not 0 <= value < SIZES[table] for _, table, value, _ in case.entries())
    assert outside > 3
    assert bad == (outside if policy == "error" else 0)
    expected, rows = case.reference(before, policy)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(fetched, expected, atol=1e-6)
    np.testing.assert_allclose(after, rows, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_are_taken_in_32_bits(dtype):
    """A bag of 4000 ids, the same on every rank, in types whose sums of ones stay below."""
    layout = BagLayout(("sum",), (4000.0,))
    table = FusedTable((1,), WIDTH, SEED)

    def work(collective):
        tables = create("alltoall", table, collective, bag_layout=layout, exchange_dtype=dtype)
        mine = np.arange(tables.local_rows)
        tables.write_rows(mine, np.ones((len(mine), WIDTH), np.float32))
        bags = Bags(tf.zeros([4000], tf.int32), tf.constant([[4000]]), tf.zeros([0]))
        lookup = tables.lookup(tables.route(bags))
        assert lookup.vectors[0].dtype == dtype
        tables.update(lookup, [tf.ones([1, 1, WIDTH], dtype)], tf.constant(1.0))
        vectors = tf.cast(lookup.vectors[0], tf.float32).numpy()
        return vectors, tables.read_rows(0, tables.local_rows)

    (one, rows), (two, _) = on_ranks(2, work)
    np.testing.assert_allclose([one, two], 4000, rtol=1e-2)
    np.testing.assert_array_equal(rows, np.full((1, WIDTH), 1.0 - 2 * 4000))


@pytest.mark.parametrize("size", [2, 3])
def test_a_single_bag_with_rows_of_every_owner(size):
    """The bag ends one owner's keys and begins the next one's, which are pieces of their own."""
    table = FusedTable((6,), WIDTH, SEED)

    def work(collective):
        tables = create("alltoall", table, collective, bag_layout=BagLayout(("sum",), (6.0,)))
        bags = Bags(tf.range(6), tf.constant([[6]]), tf.zeros([0]))
        rows = tables.read_rows(0, tables.local_rows)
        return tables.lookup(tables.route(bags)).vectors[0].numpy()[0, 0], rows

    vectors, rows = zip(*on_ranks(size, work))
    for vector in vectors:
        np.testing.assert_allclose(vector, np.concatenate(rows).sum(axis=0), atol=1e-6)


def test_gradients_against_finite_differences():
    """Of a loss of the vectors with respect to each row, by way of the update with rate 1."""
    case = Case()
    rng = np.random.default_rng(SEED)
    factors = rng.normal(size=(SAMPLES, 4, WIDTH))
    tables = create("alltoall", TABLE, Collective(), bag_layout=case.layout)
    bags, _ = case.share(0, 1)
    before = tables.read_rows(0, tables.local_rows).astype(np.float64)

    def loss(rows):
        return np.sum(np.sin(factors * case.reference(rows)[0]))

    lookup = tables.lookup(tables.route(bags))
    vectors = lookup.vectors[0].numpy().astype(np.float64)
    gradient = factors * np.cos(factors * vectors)
    tables.update(lookup, [tf.constant(gradient, tf.float32)], tf.constant(1.0))
    step = before - tables.read_rows(0, tables.local_rows)
    keys = [int(TABLE.offsets[t] + value) for _, t, value, _ in case.entries()]
    for key in rng.choice(keys, 12, replace=False):
        for column in range(WIDTH):
            moved = [before.copy(), before.copy()]
            moved[0][key, column] += 1e-4
            moved[1][key, column] -= 1e-4
            slope = (loss(moved[0]) - loss(moved[1])) / 2e-4
            np.testing.assert_allclose(step[key, column], slope, atol=2e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_bytes_as_predicted(size):
    """Uniform ids of fixed numbers: bytes counted against the expected ones, and the choice."""
    sizes, hotness, batch, width = (40, 5000, 90), (6, 4, 1), 240, 8
    layout = BagLayout(("sum",) * 3, tuple(map(float, hotness)))
    rng = np.random.default_rng(SEED)
    ids = [
        [rng.integers(0, rows, batch * hot).astype(np.int32) for rows, hot in zip(sizes, hotness)]
        for _ in range(size)
    ]
    lengths = np.repeat([[hot] for hot in hotness], batch, axis=1).astype(np.int32)
    shares = {"ranks": size, "local_batch": batch, "key_bytes": 4, "vector_bytes": 4 * width}

    def counted(compress):
        def work(collective):
            tables = create(
                "alltoall",
                FusedTable(sizes, width, SEED),
                collective,
                bag_layout=layout,
                compress=compress,
            )
            joined = tf.constant(np.concatenate(ids[collective.rank]))
            bags = Bags(joined, tf.constant(lengths), tf.zeros([0]))
            return tables.traffic(tables.route(bags)).total

        return sum(on_ranks(size, work)) / size

    for compress in (False, True):
        costs = [
            bytes_per_bag(layout, table, rows, compress=compress, **shares)
            for table, rows in enumerate(sizes)
        ]
        choice = pooled_at_owner(layout, sizes, compress=compress, **shares)
        assert choice == ((False, True, False) if compress else (True, True, True))
        expected = batch * sum(cost[not owner] for cost, owner in zip(costs, choice))
        expected *= (size - 1) / size  # the rest stays on the rank
        assert abs(counted(compress) / expected - 1) < 0.03


@pytest.mark.parametrize("size", [2, 3])
def test_both_kinds_of_pooling_are_among_the_cases(size):
    costs = {"ranks": size, "local_batch": SAMPLES // size, "key_bytes": 4, "vector_bytes": 16}
    choice = pooled_at_owner(Case().layout, SIZES, compress=True, **costs)
    assert (choice[1], choice[3]) == (False, True)


def test_expected_numbers():
    assert partial_sums(1, 8) == pytest.approx(1)
    assert partial_sums(2, 2) == pytest.approx(1.5)  # the second id is the other rank's: 1 in 2
    assert partial_sums(1000, 4) == pytest.approx(4)
    assert distinct_ids(2, 4) == pytest.approx(1.75)
