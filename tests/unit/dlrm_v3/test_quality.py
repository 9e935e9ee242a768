"""NE, accuracy, AUC and GAUC beside their definitions, candidate by candidate."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from dlrm_v3.quality import mean_auc, ranking_quality

pytestmark = pytest.mark.one_profile


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def drawn(requests: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    candidates = dice.integers(0, 9, requests)
    labels = (dice.random(candidates.sum()) < 0.3).astype(np.float32)
    scores = dice.beta(1 + labels, 2 - labels).round(1)  # many ties, and some 0 and 1
    return scores.astype(np.float32), labels, candidates


def test_the_figures_are_those_of_scikit_learn() -> None:
    predictions, labels, candidates = drawn(400)
    found = ranking_quality(predictions, labels, candidates)
    clipped = np.clip(predictions.astype(np.float64), 1e-12, 1 - 1e-12)
    rate = labels.mean(dtype=np.float64)
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert found.log_loss == pytest.approx(log_loss(labels, clipped), rel=1e-6)
    assert found.normalised_entropy == pytest.approx(found.log_loss / entropy, rel=1e-12)
    assert found.accuracy == accuracy_score(labels, predictions >= 0.5)
    assert found.auc == pytest.approx(roc_auc_score(labels, predictions), abs=1e-12)
    assert (found.candidates, found.requests) == (len(labels), np.count_nonzero(candidates))


def test_the_mean_auc_is_that_of_each_request_with_both_labels() -> None:
    predictions, labels, candidates = drawn(300)
    ends = np.cumsum(candidates)
    areas = [
        roc_auc_score(labels[end - count : end], predictions[end - count : end])
        for end, count in zip(ends, candidates)
        if 0 < labels[end - count : end].sum() < count
    ]
    assert 0 < len(areas) < 300
    assert mean_auc(predictions, labels, candidates) == pytest.approx(np.mean(areas), abs=1e-12)


def test_what_is_not_defined_is_nan() -> None:
    found = ranking_quality(values(0.25, 0.75), values(1, 1), np.array([2]))
    assert math.isnan(found.normalised_entropy)
    assert math.isnan(found.auc)
    assert math.isnan(found.gauc)
    assert found.accuracy == 0.5


def test_a_confident_mistake_costs_much_but_not_infinitely_much() -> None:
    found = ranking_quality(values(0, 1), values(1, 1), np.array([2]))
    assert found.log_loss == pytest.approx(-math.log(1e-12) / 2)
