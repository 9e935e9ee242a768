"""A step in parts: the numbers of a step, and each part once or twice in its order."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from dlrm.train.health import IDS_OUTSIDE, NOT_FINITE
from dlrm.train.staged_step import PARTS, StagedStep
from tests.support.small_model import (
    assert_refused,
    make_batches,
    reference_of,
    small_step,
    weights_of,
    weights_of_reference,
)

LEARNING_RATE = 0.5


def staged(step, opened=None):
    """The step in parts, which appends the name of each part that it opens."""

    @contextlib.contextmanager
    def open_part(name):
        if opened is not None:
            opened.append(name)
        yield

    return StagedStep(step, open_part)


@pytest.mark.parametrize("lanes", [1, 4])
def test_steps_and_staged_steps_in_turn_equal_the_reference(lanes: int) -> None:
    step, batches = small_step(lanes), make_batches(6)
    reference, parts = reference_of(step), staged(step)
    routes = step.route(batches[0].ids)
    for index, (batch, following) in enumerate(zip(batches, batches[1:])):
        take = (step, parts)[index % 2]
        health, routes = take.train(batch.dense, batch.labels, routes, following.ids, LEARNING_RATE)
        loss = reference.step(batch.dense, batch.ids, batch.labels, LEARNING_RATE)
        np.testing.assert_allclose(float(health.loss), loss, rtol=1e-5)
    for value, expected in zip(weights_of(step), weights_of_reference(reference)):
        np.testing.assert_allclose(value, expected, atol=2e-6)


def test_opens_each_part_in_order() -> None:
    opened: list[str] = []
    step, (batch,) = small_step(), make_batches(1)
    parts = staged(step, opened)
    assert opened == [], "compiling is no step"
    parts.train(batch.dense, batch.labels, step.route(batch.ids), batch.ids, LEARNING_RATE)
    assert opened == [
        *("route", "exchange of keys", "route"),
        *("lookup", "exchange of vectors", "lookup"),
        *("forward", "backward"),
        *("update", "exchange of gradients", "all-reduce", "update"),
    ]
    assert set(opened) == set(PARTS)


@pytest.mark.parametrize("fault", [IDS_OUTSIDE, NOT_FINITE])
def test_a_step_that_must_not_be_taken_changes_nothing(fault: str) -> None:
    step = small_step()
    assert_refused(step, staged(step).train, fault)
