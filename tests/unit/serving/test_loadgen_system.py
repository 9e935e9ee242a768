"""Samples in memory, batches from the queue, and workers that answer every query once."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dlrm.data import open_split
from dlrm.metrics import probabilities
from serving.id_columns import IdColumns
from serving.loadgen.batching import BatchLimit, BatchQueue, Query
from serving.loadgen.library import SampleLibrary, pair_answers
from serving.loadgen.system import Answer, ScoringSystem, measure_rate
from serving.loadgen.timeline import Timeline
from tests.support.tiny_data import write_split

PAIRS = 500
OFFSETS = np.array([0, 3, 4, 100, 140, 333, 500])


@pytest.fixture
def library(tmp_path: Path) -> SampleLibrary:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, PAIRS, dtype=np.int32)
    dense = np.arange(PAIRS * 2, dtype=np.int32).reshape(PAIRS, 2)
    ids = generator.integers(0, 3, (PAIRS, 2), dtype=np.int32)
    folder = write_split(tmp_path / "data", labels, dense, ids, (5, 3), dense_log=False)
    source = open_split(folder, per_category=False)
    return SampleLibrary(
        source, OFFSETS, IdColumns.of_data(len(source.vocab_sizes), source.bag_layout)
    )


def queue(*sizes: int, most: int, bound: float | None = None) -> tuple[BatchQueue, BatchLimit]:
    limit = BatchLimit(most, bound)
    return BatchQueue(np.array(sizes), limit), limit


def test_a_batch_is_of_one_group() -> None:
    waiting = BatchQueue(np.ones(5, int), BatchLimit(3, None), np.array([0, 0, 1, 1, 1]))
    waiting.put(Query(sample, sample) for sample in (0, 1, 2, 3, 4, 0))
    waiting.close()
    assert [samples(waiting.take()) for _ in range(3)] == [[0, 1], [2, 3, 4], [0]]


def samples(batch: Sequence[Query]) -> list[int]:
    return [query.sample for query in batch]


def test_loaded_samples_are_the_pairs_of_the_data(library: SampleLibrary) -> None:
    library.load([4, 0, 3, 5])
    pairs = library.gather([5, 0, 4])
    rows = [*range(333, 500), *range(3), *range(140, 333)]
    np.testing.assert_array_equal(pairs.dense[:, 0], [2 * row for row in rows])
    assert pairs.dense.dtype == np.float32
    assert pairs.ids.ids.dtype == np.int32
    assert len(pairs.ids.ids) == len(pairs.labels) == len(rows)
    with pytest.raises(AssertionError, match="not loaded"):
        library.gather([1])


def test_samples_that_do_not_fit_into_memory_are_refused(
    library: SampleLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = PAIRS * 4 * (2 + 2 + 1)
    monkeypatch.setattr("serving.loadgen.library.free_host_memory", lambda: need - 1)
    with pytest.raises(ValueError, match="free memory for 6 samples.*override = 2 in --user_conf"):
        library.load(range(6))
    library.load(range(5))


def test_a_batch_is_what_waits_up_to_the_limit() -> None:
    waiting, _ = queue(100, 300, 200, 700, 100, most=600)
    waiting.put(Query(10 + sample, sample) for sample in (0, 1, 2, 3, 4))
    assert samples(waiting.take()) == [0, 1, 2]  # 600
    assert samples(waiting.take()) == [3]  # too large, so alone
    waiting.put([Query(99, 0)])
    assert waiting.take() == [Query(14, 4), Query(99, 0)]
    waiting.close()
    assert waiting.take() == []


def test_a_batch_shrinks_to_what_is_scored_in_a_quarter_of_the_bound() -> None:
    waiting, limit = queue(100, most=100_000, bound=0.06)
    waiting.put(Query(number, 0) for number in range(100))
    limit.record(400, 0.02)  # 20,000 pairs a second: 300 in 15 ms
    assert len(waiting.take()) == 3
    for _ in range(200):
        limit.record(400, 0.01)
    assert 590 <= limit.pairs() <= 600


def test_what_waits_when_the_queue_is_closed_is_still_taken() -> None:
    waiting, _ = queue(1, most=1)
    waiting.put([Query(1, 0), Query(2, 0)])
    waiting.close()
    assert [len(waiting.take()) for _ in range(3)] == [1, 1, 0]


class Answers:
    """Collects answers as LoadGen does: their bytes are copied before the call returns."""

    def __init__(self) -> None:
        self.by_id: dict[int, np.ndarray] = {}
        self.errors: list[BaseException] = []
        self.failed = threading.Event()

    def complete(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            assert answer.id not in self.by_id, "answered twice"
            content = ctypes.string_at(answer.address, answer.size)
            self.by_id[answer.id] = np.frombuffer(content, np.float32)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.failed.set()


def logits_of(dense: np.ndarray, ids: np.ndarray, weights: object = None) -> np.ndarray:
    return ((dense[:, 0] + ids[:, 1]) / 250 - 1).astype(np.float32)


@pytest.mark.parametrize("readers", [0, 3])
@pytest.mark.parametrize("with_labels", [True, False])
def test_each_query_is_answered_once_with_its_own_pairs(
    library: SampleLibrary, with_labels: bool, readers: int
) -> None:
    library.load(range(6))
    collected = Answers()
    timeline = Timeline()
    system = ScoringSystem(
        library,
        pair_answers(logits_of, with_labels),
        collected.complete,
        collected.fail,
        BatchLimit(400, None),
        workers=4,
        readers=readers,
        ahead=2,
        timeline=timeline,
    )
    queries = [Query(1000 + number, number * 5 % 6) for number in range(600)]
    for first in range(0, 600, 7):
        part = queries[first : first + 7]
        system.issue([query.id for query in part], [query.sample for query in part])
    work = system.close()
    assert not collected.errors
    assert len(collected.by_id) == 600
    assert (work.samples, work.pairs) == (600, 100 * PAIRS)
    for query in queries:
        pairs = library.gather([query.sample])
        logits = logits_of(pairs.dense, *pairs.ids).astype(np.float64)
        expected = 1 / (1 + np.exp(-logits))
        found = collected.by_id[query.id]
        if with_labels:
            np.testing.assert_array_equal(found[1::2], pairs.labels)
            found = found[0::2]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    total = timeline.seconds("total")
    parts = timeline.seconds("queue", "collate", "ready", "prediction", "answer")
    assert len(total) == work.batches
    assert (total >= parts).all()
    assert np.median(total - parts) < 1e-3


def test_an_error_of_the_scorer_is_handed_on(library: SampleLibrary) -> None:
    def refuse(dense: np.ndarray, ids: np.ndarray, weights: None) -> np.ndarray:
        raise ValueError("no")

    library.load(range(6))
    collected = Answers()
    score, limit = pair_answers(refuse, with_labels=True), BatchLimit(9, None)
    system = ScoringSystem(library, score, collected.complete, collected.fail, limit, workers=1)
    system.issue([1, 2], [0, 1])
    assert collected.failed.wait(10)
    assert [str(error) for error in collected.errors] == ["no"]
    assert not collected.by_id


def test_an_error_of_a_reader_is_handed_on(library: SampleLibrary) -> None:
    library.load([0])
    collected = Answers()
    score, limit = pair_answers(logits_of, with_labels=True), BatchLimit(9, None)
    system = ScoringSystem(
        library, score, collected.complete, collected.fail, limit, workers=1, readers=2
    )
    system.issue([1], [3])
    assert collected.failed.wait(10)
    assert [str(error) for error in collected.errors] == ["not loaded"]


def test_no_more_batches_are_read_ahead_than_was_said(library: SampleLibrary) -> None:
    """While the worker is busy, queries wait together instead of in many small batches."""
    library.load(range(6))
    collected, begun, go_on = Answers(), threading.Event(), threading.Event()
    sizes: list[int] = []

    def score(dense: np.ndarray, ids: np.ndarray, weights: None) -> np.ndarray:
        sizes.append(len(dense))
        begun.set()
        go_on.wait(10)
        return logits_of(dense, ids)

    system = ScoringSystem(
        library,
        pair_answers(score, with_labels=False),
        collected.complete,
        collected.fail,
        BatchLimit(PAIRS, None),
        workers=1,
        readers=4,
        ahead=1,
    )
    system.issue([0], [0])
    assert begun.wait(10)
    for number in range(1, 21):
        system.issue([number], [0])
        threading.Event().wait(0.002)
    go_on.set()
    assert system.close().samples == 21
    # The first; the one that was read while it was scored; all others together.
    assert len(sizes) == 3
    assert not collected.errors


def test_probabilities_keep_their_digits() -> None:
    logits = np.array([-200, -30, 0, 30, 200], np.float32)
    found = probabilities(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0, np.exp(-30.0), 0.5, 1, 1], rtol=1e-6, atol=1e-45)


def test_the_warm_up_measures_pairs_a_second(library: SampleLibrary) -> None:
    pause = threading.Event()

    def score(dense: np.ndarray, ids: np.ndarray, weights: None) -> np.ndarray:
        assert len(dense) == 100
        pause.wait(0.05)
        return dense[:, 0]

    answer = pair_answers(score, with_labels=False)
    rate = measure_rate(library, answer, workers=2, max_pairs=139)
    assert rate == pytest.approx(4000, rel=0.3)
