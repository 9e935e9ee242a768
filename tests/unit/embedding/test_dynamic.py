"""Rows for ids that occur: against a table with a row for every id, and against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlrm import cpu_ops
from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, FusedTable, RowLayout, create
from dlrm.embedding.dynamic_storage import DynamicStorage
from dlrm.formats.bags import BagLayout, Bags
from dlrm.optim.adaptive_rows import RowAdagrad
from dlrm.optim.row_optimizers import RowOptimizer, RowSGD
from tests.support.reference_population import Population

SEED, WIDTH, BATCH = 20261128, 6, 40
LARGEST = 2**31 - 1


@pytest.fixture(autouse=True)
def built() -> None:
    if not cpu_ops.is_built():
        pytest.skip("run `make cpu_ops`")


def storage_of(tables: Embedding) -> DynamicStorage:
    assert isinstance(tables.dynamic, DynamicStorage)
    return tables.dynamic


def take_step(tables: Embedding, step: int, ids: tf.Tensor | Bags) -> np.ndarray:
    """Looks up and updates a batch; returns the vectors."""
    tables.begin_step(step)
    lookup = tables.lookup(tables.route(ids))
    rng = np.random.default_rng([SEED, step])
    gradients = [
        tf.constant(rng.normal(size=vectors.shape), tf.float32) for vectors in lookup.vectors
    ]
    tables.update(lookup, gradients, tf.constant(0.1))
    return np.concatenate([vectors.numpy() for vectors in lookup.vectors], axis=1)


@pytest.mark.parametrize("optimizer", [RowSGD(), RowAdagrad()], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("bad_ids", ["error", "zero"])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_bit_is_that_of_a_row_for_every_id(
    optimizer: RowOptimizer, bad_ids: str, groups: int
) -> None:
    print("seed", SEED)
    sizes, rng = (3000, 7, 50), np.random.default_rng(SEED)
    all_rows, seen = (
        create(
            backend,
            FusedTable(sizes, WIDTH, SEED),
            Collective(),
            optimizer=optimizer,
            bad_ids=bad_ids,
            table_groups=groups,
        )
        for backend in ("alltoall", "dynamic")
    )
    for step in range(1, 8):
        ids = (rng.random((BATCH, 3)) ** 2 * sizes).astype(np.int32)
        if bad_ids == "zero":
            ids[rng.random(ids.shape) < 0.1] = LARGEST
        batch = tf.constant(ids)
        assert take_step(seen, step, batch).tobytes() == take_step(all_rows, step, batch).tobytes()
        others = tf.constant((rng.random((BATCH, 3)) * sizes).astype(np.int32))
        for found, expected in zip(seen.fetch(others)[0], all_rows.fetch(others)[0]):
            assert found.numpy().tobytes() == expected.numpy().tobytes()
    sightings = storage_of(seen).sightings()
    assert sightings.rows < all_rows.local_rows
    stored = all_rows.read_rows(0, all_rows.local_rows)[sightings.keys]
    np.testing.assert_array_equal(seen.read_rows(0, sightings.rows), stored)


def test_bags_too() -> None:
    layout = BagLayout(("sum", "mean"), (2.0, 3.0), False)
    all_rows, seen = (
        create(b, FusedTable((500, 40), WIDTH, SEED), Collective(), bag_layout=layout)
        for b in ("alltoall", "dynamic")
    )
    rng = np.random.default_rng(SEED)
    for step in range(1, 4):
        lengths = rng.integers(0, 5, (2, BATCH)).astype(np.int32)
        ids = np.concatenate(
            [rng.integers(0, rows, n) for rows, n in zip((500, 40), lengths.sum(axis=1))]
        )
        bags = Bags(tf.constant(ids, tf.int32), tf.constant(lengths), tf.zeros([0]))
        assert take_step(seen, step, bags).tobytes() == take_step(all_rows, step, bags).tobytes()
        np.testing.assert_array_equal(seen.fetch(bags)[0][0], all_rows.fetch(bags)[0][0])


def test_ids_need_no_dictionary() -> None:
    """Tables of 2^31 - 1 ids, whose keys take 64 bits; only those that occur take memory."""
    rng = np.random.default_rng(SEED)
    tables = create("dynamic", FusedTable((LARGEST, LARGEST, 9), WIDTH, SEED), Collective())
    ids = rng.integers(0, [LARGEST, LARGEST, 9], (BATCH, 3)).astype(np.int32)
    keys = ids + tables.table.offsets
    before = tables.table.initial(tf.constant(keys.ravel())).numpy().reshape(BATCH, 3, WIDTH)
    np.testing.assert_array_equal(take_step(tables, 1, tf.constant(ids)), before)
    sightings = storage_of(tables).sightings()
    np.testing.assert_array_equal(sightings.keys, np.unique(keys))
    gradient = np.random.default_rng([SEED, 1]).normal(size=(BATCH, 3, WIDTH))
    expected = tables.table.initial(tf.constant(sightings.keys)).numpy().astype(np.float64)
    rows = np.searchsorted(sightings.keys, keys.ravel())
    np.subtract.at(expected, rows, 0.1 * gradient.reshape(-1, WIDTH))
    np.testing.assert_allclose(tables.read_rows(0, sightings.rows), expected, atol=1e-6)


@pytest.mark.parametrize(("admit_after", "evict_after"), [(0, 0), (2, 0), (0, 3), (1, 4), (3, 2)])
def test_who_has_a_row_and_what_is_kept(admit_after: int, evict_after: int) -> None:
    """Against plain Python, while the table grows, shrinks and moves its entries."""
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    layout = RowLayout(FusedTable((100_000,), WIDTH, SEED))
    storage = DynamicStorage(layout, admit_after=admit_after, evict_after=evict_after)
    population = Population(admit_after, evict_after)
    shared = storage.fetch(tf.constant([99_999]))  # which does not occur
    for step in range(1, 60):
        # Some ids always, some for a time, most once.
        ids = np.concatenate([np.arange(20), rng.integers(step * 9, step * 9 + 60, 40)])
        ids = np.unique(np.append(ids, rng.integers(1000, 99_000, 300 if step < 20 else 5)))
        owners, fresh = population.see(step, ids.astype(np.int32))
        storage.begin_step(step)
        addresses = storage.addresses(tf.constant(ids, tf.int32)).numpy()
        own = np.isin(ids, list(owners))
        if admit_after:
            assert (addresses[~own] == 0).all()
        assert len(set(addresses[own].tolist())) == own.sum(), "a row each"
        assert not admit_after or (addresses[own] > 0).all()
        stored = storage.read(tf.constant(addresses)).numpy()
        first = layout.initial(tf.constant(ids)).numpy()
        values = first + 1
        begin = np.isin(ids, list(fresh))
        np.testing.assert_array_equal(stored[begin], first[begin])
        np.testing.assert_array_equal(stored[own & ~begin], values[own & ~begin])
        storage.write(tf.constant(addresses[own]), tf.constant(values[own]))
        if evict_after:
            kept = len(storage.sightings().keys)
            assert kept <= 365 * (2 * evict_after + 1), "what is forgotten is freed"
    some = rng.integers(0, 99_000, 500)
    has_row = np.isin(some, list(population.owners()))
    found = storage.fetch(tf.constant(some, tf.int32)).numpy()
    first = layout.initial(tf.constant(some)).numpy()
    np.testing.assert_array_equal(found[has_row], first[has_row] + 1)
    others = np.repeat(shared, len(some), axis=0) if admit_after else first
    np.testing.assert_array_equal(found[~has_row], others[~has_row])
    sightings = storage.sightings()
    known = {
        int(key): tuple(counts) for key, counts in zip(sightings.keys, sightings.counts.tolist())
    }
    assert {key: known[key] for key in population.known} == population.known
    assert evict_after or known.keys() == population.known.keys()

    # Another storage that takes this over goes on alike.
    other = DynamicStorage(layout, admit_after=admit_after, evict_after=evict_after)
    other.put(sightings, storage.read_rows(0, sightings.rows))
    for either in (storage, other):
        either.begin_step(60)
        either.addresses(tf.range(0, 3000, 7))
    a, b = storage.sightings(), other.sightings()
    alive = a.counts[:, 1] >= 60 - evict_after if evict_after else a.keys >= 0
    same = np.isin(b.keys, a.keys[alive])
    np.testing.assert_array_equal(b.keys[same], a.keys[alive])
    np.testing.assert_array_equal(b.counts[same], a.counts[alive])


def test_a_batch_counts_once_a_step() -> None:
    storage = DynamicStorage(RowLayout(FusedTable((9,), WIDTH, SEED)), admit_after=1)
    for step in (1, 1, 1):
        storage.begin_step(step)
        assert storage.addresses(tf.constant([4])).numpy().tolist() == [0]
    storage.begin_step(2)
    assert storage.addresses(tf.constant([4])).numpy().tolist() == [1]


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RowLayout(FusedTable((9,), WIDTH, SEED))
    storage = DynamicStorage(layout)
    for keys in ([9], [-1], [[1]]):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            storage.addresses(tf.constant(keys))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        storage.write(tf.constant([0]), tf.zeros([1, WIDTH]))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        storage.read(tf.constant([5]))

    def not_built() -> None:
        raise OSError("the operations for CPUs: not built; build them with `make cpu_ops`")

    monkeypatch.setattr(cpu_ops, "load", not_built)
    with pytest.raises(ValueError, match="--embedding=dynamic: .*make cpu_ops"):
        DynamicStorage(layout)
