"""Scores where only known ids have rows, against float64 NumPy that looks ids up one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import scorer_library
from serving.scorer import Lookups, Scorer
from tests.support.artifacts import TABLES, ArtifactReference, write_artifact
from tests.support.bag_data import random_bags
from tests.support.processes import run

SEED = 20261128
LARGEST = 2**31 - 1
SIZES = (LARGEST, 40, LARGEST, 9, 2**31)
BOUND = 1e-5
SHAPE: dict[str, Any] = {"vocab_sizes": SIZES, "width": 12, "bottom": (9, 12), "top": (20, 1)}


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


def known_ids() -> tuple[tuple[int, ...], ...]:
    """Spread and neighbouring ids, the first and the last one, none at all, and all of a table."""
    print("seed", SEED)
    dice = np.random.default_rng(SEED)
    spread = dice.integers(0, LARGEST, 3000)
    strided = np.arange(0, LARGEST, 2**20)[:1500]  # of one line, were they not mixed
    first = np.unique(np.concatenate([spread, strided, np.arange(700), [0, LARGEST - 1]]))
    return (tuple(first.tolist()), (3, 39), (), tuple(range(9)), (0, LARGEST - 1, LARGEST))


def some_ids(known: tuple[tuple[int, ...], ...], batch: int) -> np.ndarray:
    """Ids of which half are known, int32 [batch, T], with the first and last ones of each table."""
    dice = np.random.default_rng([SEED, batch])
    columns = []
    for ids, size in zip(known, SIZES):
        any_ids = dice.integers(0, size, batch)
        near = np.clip(dice.choice([*ids, 0], batch) + dice.integers(-1, 2, batch), 0, size - 1)
        column = np.where(dice.random(batch) < 0.3, any_ids, near)
        ends = [size - 1, 0, size - 2, *ids[-1:], *ids[:1]][:batch]
        column[: len(ends)] = ends
        columns.append(column)
    return np.stack(columns, axis=1).astype(np.int32)


def dense_of(reference: ArtifactReference, batch: int) -> np.ndarray:
    shape = (batch, len(reference.bottom[0].kernel))
    return np.random.default_rng(SEED).standard_normal(shape, np.float32)


def assert_close(logits: Any, expected: Any) -> None:
    assert np.std(expected) > 0.01 or len(expected) < 3
    np.testing.assert_allclose(logits, expected, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("initial_seed", [None, 7])
@pytest.mark.parametrize("tables", TABLES)
def test_logits_are_those_of_float64(tmp_path: Path, tables: str, initial_seed: int | None) -> None:
    known = known_ids()
    reference = write_artifact(
        tmp_path / "a", tables=tables, known=known, initial_seed=initial_seed, **SHAPE
    )
    for level in scorer_library.levels():
        for threads in (1, 2):
            with Scorer.open(tmp_path / "a", level=level, threads=threads) as scorer:
                for batch in (1, 2, 63, 300):
                    ids, dense = some_ids(known, batch), dense_of(reference, batch)
                    assert_close(scorer.score(dense, ids), reference.logits(dense, ids))


def test_every_id_finds_its_row(tmp_path: Path) -> None:
    """In an index of many lines, of which some are full; and so do their neighbours."""
    known = known_ids()
    reference = write_artifact(tmp_path / "a", known=known, **SHAPE)
    ids = np.zeros((3 * len(known[0]), len(SIZES)), np.int32)
    around = np.array(known[0])[:, None] + [-1, 0, 1]
    ids[:, 0] = np.clip(around, 0, LARGEST - 1).ravel()
    dense = dense_of(reference, len(ids))
    with Scorer.open(tmp_path / "a") as scorer:
        assert_close(scorer.score(dense, ids), reference.logits(dense, ids))
        assert scorer.lookups() == Lookups(ids.size, 0)


def hashed(ids: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3, by which the index spreads ids over its lines."""
    words = ids.astype(np.uint64)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor) % np.uint64(2**32)
    return words


@pytest.mark.parametrize("line", [0, 3, 4])
def test_ids_that_all_belong_to_one_line(tmp_path: Path, line: int) -> None:
    """They fill it and those behind it; behind the last one comes the first."""
    candidates = np.arange(3000)
    of_line = candidates[hashed(candidates) * np.uint64(5) >> np.uint64(32) == line]
    ids, others = of_line[:20], of_line[20:60]  # 20 ids have five lines of eight
    reference = write_artifact(tmp_path / "a", (3000,), 4, known=(tuple(ids.tolist()),))
    samples = np.concatenate([ids, others, candidates[:100]]).astype(np.int32)[:, None]
    dense = dense_of(reference, len(samples))
    with Scorer.open(tmp_path / "a") as scorer:
        assert_close(scorer.score(dense, samples), reference.logits(dense, samples))


@pytest.mark.parametrize("initial_seed", [None, 7])
@pytest.mark.parametrize("weights", [False, True])
def test_bags_of_known_and_other_ids(
    tmp_path: Path, weights: bool, initial_seed: int | None
) -> None:
    sizes, known = (LARGEST, 60, LARGEST), ((5, 9, LARGEST - 1), tuple(range(0, 60, 3)), (8,))
    reference = write_artifact(
        tmp_path / "a",
        sizes,
        12,
        bottom=(9, 12),
        top=(20, 1),
        pooling=("mean", "sum", "sum"),
        max_ids=(4, 6, 2),
        weighted=weights,
        known=known,
        initial_seed=initial_seed,
    )
    dice, batch = np.random.default_rng(SEED), 200
    bags = []
    for table, (kind, most) in enumerate((("mean", 4), ("sum", 6), ("sum", 2))):
        bag = random_bags(dice, table, batch, 60, longest=most, pooling=kind, weights=weights)
        for ids in bag.bags:  # some of the largest
            ids[:] = [LARGEST - 1 - n if sizes[table] > 60 and n % 3 == 0 else n for n in ids]
        bags.append(bag)
    dense = dense_of(reference, batch)
    with Scorer.open(tmp_path / "a") as scorer:
        columns = np.full((batch, 12), -1, np.int32)
        factors = np.ones((batch, 12), np.float32) if weights else None
        for first, bag in zip((0, 4, 10), bags):
            for sample, ids in enumerate(bag.bags):
                columns[sample, first : first + len(ids)] = ids
                if factors is not None and bag.weights is not None:
                    factors[sample, first : first + len(ids)] = bag.weights[sample]
        expected = reference.bag_logits(dense, bags)
        assert_close(scorer.score(dense, columns, factors), expected)
        user, items = columns[0, 4:10], columns[:, [0, 1, 2, 3, 10, 11]]
        whole = columns.copy()
        whole[:, 4:10] = user
        more = factors
        parts: list[Any] = [None, None]
        if factors is not None:
            more = factors.copy()
            more[:, 4:10] = factors[0, 4:10]
            parts = [factors[0, 4:10], factors[:, [0, 1, 2, 3, 10, 11]]]
        found = scorer.score_candidates(dense[0], user, items, [1], *parts)
        again = scorer.score(np.repeat(dense[:1], batch, 0), whole, more)
        np.testing.assert_allclose(found, again, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("initial_seed", [None, 7])
def test_rows_in_order_of_use_and_in_the_file(tmp_path: Path, initial_seed: int | None) -> None:
    known = known_ids()
    reference = write_artifact(
        tmp_path / "a", known=known, initial_seed=initial_seed, row_order=True, **SHAPE
    )
    ids, dense = some_ids(known, 200), dense_of(reference, 200)
    for share in (0, 0.3, 1):
        with Scorer.open(tmp_path / "a", hot_share=share) as scorer:
            assert_close(scorer.score(dense, ids), reference.logits(dense, ids))


def test_candidates_of_one_user(tmp_path: Path) -> None:
    known = known_ids()
    reference = write_artifact(tmp_path / "a", known=known, initial_seed=3, **SHAPE)
    ids, dense = some_ids(known, 90), dense_of(reference, 1)
    whole = ids.copy()
    whole[:, [4, 0]] = ids[5, [4, 0]]
    with Scorer.open(tmp_path / "a") as scorer:
        found = scorer.score_candidates(dense[0], ids[5, [4, 0]], ids[:, [1, 2, 3]], [4, 0])
    assert_close(found, reference.logits(np.repeat(dense, 90, 0), whole))


def test_raw_values_of_known_and_other_ids(tmp_path: Path) -> None:
    known = ((1, 5), (0,), ())
    reference = write_artifact(tmp_path / "a", known=known, initial_seed=3, dictionary=True)
    dice = np.random.default_rng(SEED)
    values = [dice.choice([*ids, -1, 77], 60) for ids in reference.dictionaries]
    dense, raw = dice.integers(0, 50, (60, 3), np.int32), np.stack(values, axis=1).astype(np.int64)
    with Scorer.open(tmp_path / "a") as scorer:
        expected = reference.logits(np.log1p(dense), reference.ids_of(raw))
        assert_close(scorer.score_raw(dense, raw), expected)


@pytest.mark.parametrize(
    ("place", "number", "found"),
    [((2, 0), LARGEST, LARGEST), ((2, 1), 40, 40), ((2, 4), -1, -1), ((2, 0), -(2**31), -(2**31))],
)
def test_ids_beyond_their_tables_are_named(
    tmp_path: Path, place: tuple[int, int], number: int, found: int
) -> None:
    reference = write_artifact(tmp_path / "a", known=known_ids(), **SHAPE)
    ids = some_ids(known_ids(), 3)
    ids[place] = number
    with Scorer.open(tmp_path / "a") as scorer:
        message = f"sample 2, table {place[1]}: .* found {found}"
        with pytest.raises(ValueError, match=message):
            scorer.score(dense_of(reference, 3), ids)
