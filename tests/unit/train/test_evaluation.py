"""AUC, log loss and NE against scikit-learn and float64 NumPy."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dlrm.distributed.collective import Collective
from dlrm.metrics import Evaluation, auc_from_counts, binary_entropy
from dlrm.train.evaluation import Evaluator
from tests.support.processes import ROOT, horovodrun

Floats = NDArray[np.float32]
SEED = 20240607
SAMPLES = 50_000


def figures(logits: Floats, labels: Floats, batch: int = 4096) -> Evaluation:
    """Evaluates in batches; the last one is filled up with samples that must not count."""
    evaluator = Evaluator(8000, Collective())
    for start in range(0, len(logits), batch):
        valid = min(batch, len(logits) - start)
        padded_logits = np.full(batch, np.nan, np.float32)
        padded_labels = np.ones(batch, np.float32)
        padded_logits[:valid] = logits[start : start + valid]
        padded_labels[:valid] = labels[start : start + valid]
        evaluator.add(tf.constant(padded_logits), tf.constant(padded_labels), tf.constant(valid))
    return evaluator.result(step=11, seconds=2.5)


def log_loss(logits: Floats, labels: Floats) -> float:
    """Mean binary cross-entropy in float64: log(1 + exp(x)) - x * label."""
    scores = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0, scores) - scores * labels))


def check(result: Evaluation, logits: Floats, labels: Floats) -> None:
    positive = float(np.mean(labels.astype(np.float64)))
    entropy = -positive * math.log(positive) - (1 - positive) * math.log(1 - positive)
    loss = log_loss(logits, labels)
    assert result.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
    assert result.log_loss == pytest.approx(loss, rel=1e-5)
    assert result.normalised_entropy == pytest.approx(loss / entropy, rel=1e-5)
    assert result.samples == len(logits)


def separated(
    generator: np.random.Generator, positives: int, mean: float, spread: float
) -> tuple[Floats, Floats]:
    """Normal logits, those of the positives one `spread` higher, shuffled."""
    labels = np.zeros(SAMPLES, np.float32)
    labels[:positives] = 1
    generator.shuffle(labels)
    logits = mean + spread * (generator.normal(size=SAMPLES) + labels)
    return logits.astype(np.float32), labels


CASES = {
    "balanced": (SAMPLES // 2, 0.0, 1.0),
    "widely spread": (SAMPLES // 2, 0.0, 6.0),
    "hardly spread": (SAMPLES // 4, -1.0, 0.1),
    "a quarter of clicks": (SAMPLES // 4, -1.1, 1.0),
    "0.1 % positives": (SAMPLES // 1000, 0.0, 1.0),
    "0.1 % positives, calibrated": (SAMPLES // 1000, -7.5, 1.0),
    "99.9 % positives": (SAMPLES - SAMPLES // 1000, 5.0, 1.0),
    "all probabilities tiny, close together": (SAMPLES // 100, -9.0, 0.25),
}


@pytest.mark.parametrize("case", CASES)
def test_auc_equals_scikit_learn(case: str) -> None:
    print("seed", SEED)
    logits, labels = separated(np.random.default_rng(SEED), *CASES[case])
    check(figures(logits, labels), logits, labels)


@pytest.mark.parametrize(("low", "high"), [(-16.0, -6.95), (6.95, 16.0)])
def test_scores_at_one_end(low: float, high: float) -> None:
    """Thresholds in the probability alone would see nearly one score in all samples."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    logits = generator.uniform(low, high, SAMPLES).astype(np.float32)
    rank = (logits - low) / (high - low)
    labels = (generator.random(SAMPLES) < 0.1 + 0.8 * rank).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert probabilities.max() < 1e-3 or probabilities.min() > 0.999
    check(figures(logits, labels), logits, labels)


@pytest.mark.parametrize(
    "scores",
    [[0.25], [-0.5, 0.5], [-9.0, -1.0, 0.0, 1.0, 9.0], [-31.0, -30.0, 30.0, 31.0]],
    ids=len,
)
def test_tied_scores(scores: list[float]) -> None:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    logits = generator.choice(np.array(scores, np.float32), SAMPLES)
    chance = 0.2 + 0.6 * np.searchsorted(scores, logits) / max(1, len(scores) - 1)
    labels = (generator.random(SAMPLES) < chance).astype(np.float32)
    result = figures(logits, labels)
    check(result, logits, labels)
    # Scores in different bins are counted exactly.
    assert result.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)


def test_by_hand() -> None:
    # Pairs: (2, 0) won, (2, 1) won, (0, 0) tied, (0, 1) lost -> 2.5 of 4.
    result = figures(
        np.array([2, 0, 0, 1], np.float32), np.array([1, 1, 0, 0], np.float32), batch=3
    )
    assert result.auc == 0.625
    expected = (
        math.log1p(math.exp(-2)) + 2 * math.log(2) + math.log1p(math.exp(1))
    ) / 4  # the terms of samples 0, 1 and 2, 3
    assert result.log_loss == pytest.approx(expected, rel=1e-6)
    assert result.normalised_entropy == pytest.approx(expected / math.log(2), rel=1e-6)
    assert (result.step, result.samples, result.seconds) == (11, 4, 2.5)


def test_perfect_and_inverted_order() -> None:
    logits = np.array([-50, -3, -2, 2, 3, 60], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1], np.float32)
    assert figures(logits, labels).auc == 1.0
    assert figures(logits, 1 - labels).auc == 0.0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_single_class_has_no_auc(label: float) -> None:
    logits = np.linspace(-3, 3, 1000, dtype=np.float32)
    labels = np.full(1000, label, np.float32)
    result = figures(logits, labels)
    assert math.isnan(result.auc)
    assert math.isnan(result.normalised_entropy)
    assert result.log_loss == pytest.approx(log_loss(logits, labels), rel=1e-6)
    assert result.samples == 1000


def test_no_sample_at_all() -> None:
    evaluator = Evaluator(100, Collective())
    evaluator.add(tf.zeros([8]), tf.ones([8]), tf.constant(0))
    result = evaluator.result(step=0, seconds=0.0)
    assert result.samples == 0
    assert math.isnan(result.auc)
    assert math.isnan(result.log_loss)
    assert math.isnan(result.normalised_entropy)


def test_batch_size_and_empty_share_change_nothing() -> None:
    print("seed", SEED)
    logits, labels = separated(np.random.default_rng(SEED), SAMPLES // 3, -1.0, 1.0)
    logits, labels = logits[:5000], labels[:5000]
    whole = figures(logits, labels, batch=5000)
    for batch in (1024, 4999, 7000):
        cut = figures(logits, labels, batch=batch)
        assert (cut.auc, cut.samples) == (whole.auc, whole.samples)
        assert cut.log_loss == pytest.approx(whole.log_loss, rel=1e-6)


def test_reset_forgets() -> None:
    evaluator = Evaluator(100, Collective())
    evaluator.add(tf.constant([3.0, np.nan]), tf.constant([0.0, 1.0]), tf.constant(2))
    evaluator.reset()
    evaluator.add(tf.constant([1.0, 2.0]), tf.constant([0.0, 1.0]), tf.constant(2))
    result = evaluator.result(step=0, seconds=0.0)
    assert (result.auc, result.samples) == (1.0, 2)
    assert math.isfinite(result.log_loss)


def test_add_is_traced_once_for_all_shares() -> None:
    evaluator = Evaluator(100, Collective())
    add = tf.function(evaluator.add)
    for valid in (4, 3, 0):
        add(tf.constant([1.0, 2.0, 3.0, 4.0]), tf.constant([0.0, 1, 0, 1]), tf.constant(valid))
    assert add.experimental_get_tracing_count() == 1
    result = evaluator.result(step=0, seconds=0.0)
    assert result.samples == 7
    # Positives 2, 2, 4 against negatives 1, 3, 1, 3: wins 2 + 2 + 4 of 12.
    assert result.auc == pytest.approx(8 / 12, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logit_that_is_not_finite_shows_in_the_loss(bad: float) -> None:
    # Each infinity on the wrong side, where the loss is infinite and not NaN.
    label = 1.0 if bad == -np.inf else 0.0
    logits = np.array([0.5, bad, -0.5, 1.0], np.float32)
    result = figures(logits, np.array([1, label, 0, 1], np.float32))
    assert not math.isfinite(result.log_loss)
    assert result.samples == 4


def test_counts_go_on_past_the_integers_of_float32() -> None:
    """A float32 count would stay at 2**24 however many single samples follow."""
    evaluator = Evaluator(100, Collective())
    many = 1 << 22
    zeros = tf.zeros([many])
    for _ in range(4):
        evaluator.add(zeros, zeros, tf.constant(many))
    one = tf.ones([1])
    for _ in range(3):
        evaluator.add(tf.zeros([1]), tf.zeros([1]), tf.constant(1))
    evaluator.add(one, one, tf.constant(1))
    result = evaluator.result(step=0, seconds=0.0)
    assert result.samples == 2**24 + 4
    # The loss too: a float32 sum of 17 million terms of ln 2 would be off by far more.
    expected = ((2**24 + 3) * math.log(2) + math.log1p(math.exp(-1))) / (2**24 + 4)
    assert result.log_loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ([1, 2**24 + 1, 3], [2**24 + 1, 5, 7]),
        ([0, 2**31 + 1, 12345], [2**31 + 7, 11, 2**32 + 3]),
        ([2**33, 5, 2**31 + 1], [3, 2**35 + 1, 1]),
        ([10**12, 1], [1, 10**12]),
    ],
)
def test_auc_of_large_counts_is_exact(positives: list[int], negatives: list[int]) -> None:
    halves = below = 0
    for positive, negative in zip(positives, negatives):
        halves += positive * (2 * below + negative)
        below += negative
    expected = Fraction(halves, 2 * sum(positives) * sum(negatives))
    found = auc_from_counts(np.array(positives, np.int64), np.array(negatives, np.int64))
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_auc_of_many_random_bins_is_exact() -> None:
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    positives, negatives = generator.integers(0, 2**40, size=(2, 16_000))
    halves = below = 0
    for positive, negative in zip(positives.tolist(), negatives.tolist()):
        halves += positive * (2 * below + negative)
        below += negative
    expected = Fraction(halves, 2 * sum(positives.tolist()) * below)
    assert auc_from_counts(positives, negatives) == pytest.approx(float(expected), rel=1e-12)


def test_entropy_by_hand() -> None:
    assert binary_entropy(0.5) == pytest.approx(math.log(2), rel=1e-15)
    assert binary_entropy(0.25) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3), rel=1e-14)
    assert binary_entropy(0.0) == binary_entropy(1.0) == 0.0


@pytest.mark.multi_rank
def test_two_ranks_with_unequal_shares(tmp_path: Path) -> None:
    """The second rank has half a batch, then nothing; the union is what counts."""
    print("seed", SEED)
    logits, labels = separated(np.random.default_rng(SEED), SAMPLES // 5, -1.5, 1.3)
    # The small share differs from the large one, so that a mean of two AUCs would be far off.
    logits[-500:] += 4
    np.savez(tmp_path / "scores.npz", logits=logits, labels=labels, batch=1000)
    done = horovodrun(
        2,
        "python3",
        "-m",
        "tests.multi_rank.workers.evaluate",
        tmp_path / "scores.npz",
        tmp_path,
        env={"PYTHONPATH": os.fspath(ROOT)},
        time_limit=120,
    )
    assert done.code == 0, done.output
    results: list[dict[str, Any]] = [
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    ]
    assert results[0] == results[1]
    check(Evaluation(**results[0]), logits, labels)
    assert results[0]["step"] == 7
