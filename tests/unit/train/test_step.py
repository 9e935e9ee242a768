"""How a step is used, and that it computes what float64 NumPy does."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm.train.health import IDS_OUTSIDE, NOT_FINITE
from tests.support.small_model import (
    assert_refused,
    make_batches,
    reference_of,
    small_step,
    weights_of,
    weights_of_reference,
)

LEARNING_RATE = 0.5


@pytest.mark.parametrize("lanes", [1, 4])
def test_five_steps_equal_the_reference(lanes: int) -> None:
    step, batches = small_step(lanes), make_batches(6)
    reference = reference_of(step)
    routes = step.route(batches[0].ids)
    for batch, following in zip(batches, batches[1:]):
        # The routes of the next batch come with this one's step.
        health, routes = step.train(batch.dense, batch.labels, routes, following.ids, LEARNING_RATE)
        loss = reference.step(batch.dense, batch.ids, batch.labels, LEARNING_RATE)
        np.testing.assert_allclose(float(health.loss), loss, rtol=1e-5)
    for value, expected in zip(weights_of(step), weights_of_reference(reference)):
        np.testing.assert_allclose(value, expected, atol=2e-6)


def test_scores_equal_the_reference() -> None:
    step, (batch,) = small_step(), make_batches(1)
    logits, bad_ids = step.score(batch.dense, batch.ids)
    expected = reference_of(step).logits(batch.dense, batch.ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert int(bad_ids) == 0


@pytest.mark.parametrize("samples", [1, 6, 40])
def test_a_batch_of_another_size_scores_the_same(samples: int) -> None:
    step, batches = small_step(lanes=4), make_batches(3)
    dense = np.concatenate([batch.dense for batch in batches])[:samples]
    ids = np.concatenate([batch.ids for batch in batches])[:samples]
    logits, _ = step.score(dense, ids)
    expected = reference_of(step).logits(dense, ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_gradients_change_nothing() -> None:
    step, (batch,) = small_step(), make_batches(1)
    before = weights_of(step)
    vectors = step.embedding.lookup(step.route(batch.ids)).vectors
    local = step.gradients(batch.dense, vectors, batch.labels)
    assert [gradient.shape for gradient in local.vectors] == [tensor.shape for tensor in vectors]
    assert len(local.weights) == len(step.dense)
    for value, expected in zip(weights_of(step), before):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("fault", [IDS_OUTSIDE, NOT_FINITE])
def test_a_step_that_must_not_be_taken_changes_nothing(fault: str) -> None:
    step = small_step()
    assert_refused(step, step.train, fault)
