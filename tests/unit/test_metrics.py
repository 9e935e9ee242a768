"""Exact figures of predictions, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dlrm.metrics import exact_auc, probabilities, quality_of

SEED = 20261126


def test_four_predictions_by_hand():
    logits = np.array([0, math.log(3), 0, -math.log(3)], np.float32)
    found = quality_of(logits, np.array([1, 1, 0, 0], np.float32))
    # Of four pairs, three are in order and one is a tie.
    assert found.auc == 0.875
    # Probabilities of what happened: 1/2, 3/4, 1/2, 3/4.
    assert found.log_loss == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert found.normalised_entropy == pytest.approx(found.log_loss / math.log(2))
    assert found.samples == 4


@pytest.mark.parametrize("digits", [1, 7], ids=["many ties", "few ties"])
def test_as_scikit_learn_finds(digits):
    dice = np.random.default_rng(SEED)
    labels = (dice.random(20_000) < 0.2).astype(np.float32)
    logits = (dice.normal(size=20_000) + labels - 1.5).round(digits).astype(np.float32)
    found = quality_of(logits, labels)
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert found.log_loss == pytest.approx(log_loss(labels, expected), rel=1e-12)
    mean = labels.mean(dtype=np.float64)
    entropy = log_loss(labels, np.full(20_000, mean))
    assert found.normalised_entropy == pytest.approx(found.log_loss / entropy, rel=1e-12)


def test_a_billionth_apart_is_no_tie():
    scores = np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert exact_auc(scores, np.array([0, 1], np.float32)) == 1


def test_one_label_alone():
    found = quality_of(np.array([1, 2], np.float32), np.ones(2, np.float32))
    assert math.isnan(found.auc)
    assert math.isnan(found.normalised_entropy)
    assert found.log_loss > 0


def test_probabilities_of_any_logit() -> None:
    logits = np.array([0, 1, -1, 1e4, -1e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = probabilities(logits)
    assert found.dtype == np.float32
    expected = [0.5, 0.7310585786, 0.2689414214, 1, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-7)
