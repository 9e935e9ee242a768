"""The placement study: its streams, its counts beside real exchanges, and its heuristic by hand."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.placement import __main__ as command
from benchmarks.placement import fit
from benchmarks.placement.counting import Exchange, count, greatest_over_mean
from benchmarks.placement.placements import (
    BY_HASH,
    BY_MODULO,
    WHOLE_TABLES,
    owners_of_tables,
    placements,
)
from benchmarks.placement.step_time import A100, exchange_seconds, rests, step_time
from benchmarks.placement.streams import BLOCK, EXPONENTS, KeyStream, PowerLaw, exponents
from benchmarks.shapes import KAGGLE_VOCAB_SIZES, MLPERF_VOCAB_SIZES
from dlrm import cli, embedding
from dlrm.distributed.collective import Collective
from dlrm.embedding import FusedTable, Traffic
from tests.support.thread_ranks import on_ranks

SIZES, WIDTH, BATCH = (40, 3, 900), 4, 16


@pytest.mark.parametrize("exponent", [0.0, 0.9, 1.0, 1.065, 4.0])
def test_ids_occur_as_often_as_the_law_says(exponent: float) -> None:
    law, draws = PowerLaw(50, exponent), 200_000
    ids = law.ids(np.random.default_rng(7).random(draws))
    found = np.bincount(ids, minlength=50) / draws
    # The density t^-s, added up in a million steps: independent of the formula's integral.
    edges = np.linspace(1, 51, 1_000_001)
    middles = (edges[1:] + edges[:-1]) / 2
    weights = (middles**-exponent).reshape(50, -1).sum(axis=1)
    chances = weights / weights.sum()
    np.testing.assert_allclose(law.probabilities(0, 50), chances, rtol=1e-6)
    assert len(found) == 50
    assert (np.abs(found - chances) < 5 * np.sqrt(chances / draws) + 1e-9).all()


def test_each_table_has_the_exponent_of_kaggles_of_the_same_place_by_size() -> None:
    found = exponents(MLPERF_VOCAB_SIZES)
    assert found[MLPERF_VOCAB_SIZES.index(max(MLPERF_VOCAB_SIZES))] == EXPONENTS[0]
    assert found[MLPERF_VOCAB_SIZES.index(3)] == EXPONENTS[-1]
    assert sorted(found) == sorted(EXPONENTS)
    with pytest.raises(ValueError, match="expected 26 tables, found 2"):
        exponents((3, 4))


def test_local_batches_cut_one_stream_however_many_ranks_there_are() -> None:
    stream = KeyStream(KAGGLE_VOCAB_SIZES, seed=3)
    whole = np.concatenate([stream.block(0), stream.block(1)])
    offsets = np.cumsum([0, *KAGGLE_VOCAB_SIZES])
    assert ((whole >= offsets[:-1]) & (whole < offsets[1:])).all()
    for ranks in (1, 4, 8):
        parts = list(stream.local_batches(2 * BLOCK // ranks, ranks))
        assert len(parts) == ranks
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_tables_are_placed_as_the_heuristic_says() -> None:
    # Two ranks, at most two tables each. 9 -> 0, 7 -> 1, 5 -> 1 (7 < 9), which is full; 1 -> 0.
    assert owners_of_tables((1, 9, 5, 7), 2) == [0, 0, 1, 1]
    # Without the limit, the last 1 would go to rank 1 with its 3 rows.
    assert owners_of_tables((9, 2, 1, 1), 2) == [0, 1, 1, 0]
    # More than four ranks: none on rank 0, and ranks beyond the tables stay empty.
    assert owners_of_tables((5, 6, 7), 5) == [3, 2, 1]
    assert sorted(owners_of_tables(MLPERF_VOCAB_SIZES, 1024)) == list(range(1, 27))
    eight = np.bincount(owners_of_tables(MLPERF_VOCAB_SIZES, 8), minlength=8)
    assert eight[0] == 0
    assert eight.max() == 4  # 26 tables over seven ranks, rounded up


def small_batches(ranks: int) -> np.ndarray:
    """Skewed ids [ranks, BATCH, tables]."""
    random = np.random.default_rng(11)
    ids: np.ndarray = (random.random([ranks, BATCH, len(SIZES)]) ** 4 * SIZES).astype(np.int32)
    return ids


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("compress", [False, True])
def test_counts_are_those_of_the_real_exchange(ranks: int, compress: bool) -> None:
    ids = small_batches(ranks)

    def on_rank(collective: Collective) -> tuple[list[int], int, Traffic]:
        tables = embedding.create(
            "alltoall", FusedTable(SIZES, WIDTH, seed=1), collective, compress=compress
        )
        routes = tables.route(tf.constant(ids[collective.rank]))
        (route,) = routes
        return route.sent.numpy().tolist(), len(route.rows), tables.traffic(routes)

    keys = list(ids + np.array([0, SIZES[0], SIZES[0] + SIZES[1]]))
    found = count(keys, placements(SIZES, ranks), ranks, sum(SIZES))[BY_MODULO, compress]
    sent, rows, traffic = zip(*on_ranks(ranks, on_rank))
    assert found.keys.tolist() == list(sent)
    assert found.rows.tolist() == list(rows)
    assert found.bytes_sent(4, 4 * WIDTH).tolist() == [each.total for each in traffic]


def test_counts_by_hand() -> None:
    """Tables of 4 and 2 rows on two ranks; both samples of rank 0 and rank 1's want key 2."""
    keys = [np.array([[2, 4], [2, 5]]), np.array([[2, 4], [3, 4]])]
    found = count(keys, placements((4, 2), 2), 2, 6)
    plain, compressed = found[BY_MODULO, False], found[BY_MODULO, True]
    assert plain.keys.tolist() == [[3, 1], [3, 1]]
    assert compressed.keys.tolist() == [[2, 1], [2, 1]]
    assert plain.rows.tolist() == compressed.rows.tolist() == [2, 2]
    assert plain.received.tolist() == [6, 2]
    assert greatest_over_mean(plain.received) == 1.5
    # Rank 0 sends a key, its gradient and 3 vectors; rank 1 sends 3 keys, 3 gradients and a vector.
    assert plain.bytes_sent(4, 100).tolist() == [4 + 100 + 300, 12 + 300 + 100]

    tables = found[WHOLE_TABLES, False]
    assert tables.keys.tolist() == [[2, 2], [2, 2]]  # table 0 on rank 0, table 1 on rank 1
    assert tables.bottom.tolist() == [[2, 0], [2, 0]]  # rank 0 computes the bottom MLP for all
    assert tables.bytes_sent(4, 100).tolist() == [8 + 200 + 200 + 200, 8 + 200 + 200 + 200]
    for compress in (False, True):
        assert found[BY_HASH, compress].keys.sum() == found[BY_MODULO, compress].keys.sum()


def test_an_exchange_takes_as_long_as_its_busiest_link() -> None:
    """Two servers of eight; rank 0 sends 3 keys to rank 1 beside it, and 2 to rank 8 over there."""
    keys = np.zeros((16, 16), np.int64)
    keys[0, 0], keys[0, 1], keys[0, 8] = 99, 3, 2
    exchange = Exchange(keys, np.zeros_like(keys), keys.sum(axis=0))
    wait = 3 * 15 * A100.message
    network = 2 * (4 + 2 * 512) / A100.network  # slower than 3 over the server's own links
    assert exchange_seconds(A100, exchange, 512) == pytest.approx(wait + network)


def test_the_step_of_the_busiest_rank_counts() -> None:
    keys = np.full((2, 2), 100)
    even = Exchange(keys, np.zeros_like(keys), np.array([50, 50]))
    uneven = Exchange(keys * [[0, 2], [0, 2]], np.zeros_like(keys), np.array([0, 100]))
    one, other = (step_time(A100, "float32", exchange, 64) for exchange in (even, uneven))
    assert other.exchange > one.exchange
    assert other.memory > one.memory
    assert other.products == one.products
    # 14.4 M operations a sample, at 156 T operations a second.
    assert one.products == pytest.approx(1e3 * 64 * 14.4e6 / 156e12, rel=0.02)


def test_published_steps_take_longer_than_their_parts() -> None:
    samples, ranks = 8192, 8
    batches = KeyStream(MLPERF_VOCAB_SIZES, 0).local_batches(samples, ranks)
    ways = placements(MLPERF_VOCAB_SIZES, ranks)
    found = rests(count(batches, ways, ranks, sum(MLPERF_VOCAB_SIZES)), samples)
    assert min(found) > 0
    assert max(found[:4]) < 1.5 * min(found[:4])  # on A100, nearly the same four times


def test_a_fit_finds_the_exponent_that_made_the_draws() -> None:
    draws, law = 4000, PowerLaw(100_000, 1.1)
    ids = law.ids(np.random.default_rng(5).random(draws))
    assert fit.fitted(law.rows, draws, len(set(ids.tolist()))).exponent == pytest.approx(
        1.1, abs=0.03
    )


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["placement", *flags])
    return cli.exit_code(command.main)


def test_the_command_prints_and_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--ranks=2,16", "--scaling=strong", "--tables=kaggle", f"--output={tmp_path}"]
    assert run(monkeypatch, *flags) == 0
    shown = capsys.readouterr().out
    assert "| 16 | rows by modulo, compress |" in shown
    with (tmp_path / "placement.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * 2
    first = lines[0]
    assert (first["ranks"], first["placement"], first["compress"]) == ("2", BY_MODULO, "False")
    assert float(first["keys"]) == 65536 * 26 / 2
    assert (tmp_path / "placement.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--ranks=3", "--ranks: expected powers of two from 2 to 1024, found '3'"),
        ("--ranks=2048", "expected powers of two from 2 to 1024"),
        ("--scaling=up", "--scaling: expected some of strong,weak, found 'up'"),
    ],
)
def test_a_bad_flag_is_one_line(
    flag: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, flag) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
