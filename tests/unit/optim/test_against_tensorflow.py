"""Optimizers against TensorFlow's own operations in float64, dense and sparse, over some steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding import FusedTable, create
from dlrm.optim.adaptive_dense import DenseAdagrad, DenseAdam, DenseFtrl
from dlrm.optim.adaptive_rows import RowAdagrad, RowAdam, RowFtrl
from dlrm.optim.dense_optimizers import DenseMomentum, DenseOptimizer
from dlrm.optim.row_optimizers import RowMomentum, RowOptimizer

ROWS, WIDTH, STEPS, RATE = 6, 3, 8, 0.1
MOMENTUM, EPSILON, BETAS, L1, L2, INITIAL = 0.8, 0.03, (0.9, 0.99), 0.2, 0.5, 0.04


class Theirs:
    """A variable that TensorFlow's operations update, and its slots.

    Args:
        weights: float64, what it starts with.
        slots: What each slot starts with.
    """

    def __init__(self, weights: np.ndarray, *slots: np.ndarray) -> None:
        self.var = tf.Variable(weights, dtype=tf.float64)
        self.slots = [tf.Variable(slot, dtype=tf.float64) for slot in slots]
        self.step = 0

    def handles(self, *names: str) -> dict[str, tf.Tensor]:
        slots = dict(zip(names, (slot.handle for slot in self.slots)))
        return {"var": self.var.handle, **slots}


def momentum(theirs: Theirs, gradient: Any, rows: Any) -> None:
    known = {**theirs.handles("accum"), "lr": d(RATE), "grad": gradient, "momentum": d(MOMENTUM)}
    if rows is None:
        tf.raw_ops.ResourceApplyMomentum(**known)
    else:
        tf.raw_ops.ResourceSparseApplyMomentum(**known, indices=rows)


def adagrad(theirs: Theirs, gradient: Any, rows: Any) -> None:
    known = {**theirs.handles("accum"), "lr": d(RATE), "grad": gradient, "epsilon": d(EPSILON)}
    if rows is None:
        tf.raw_ops.ResourceApplyAdagradV2(**known)
    else:
        tf.raw_ops.ResourceSparseApplyAdagradV2(**known, indices=rows)


def adam(theirs: Theirs, gradient: Any, rows: Any) -> None:
    assert rows is None, "TensorFlow has none for rows"
    theirs.step += 1
    powers = [beta**theirs.step for beta in BETAS]
    # Its epsilon is added before the correction of the root is undone.
    tf.raw_ops.ResourceApplyAdam(
        **theirs.handles("m", "v"),
        beta1_power=d(powers[0]),
        beta2_power=d(powers[1]),
        lr=d(RATE),
        beta1=d(BETAS[0]),
        beta2=d(BETAS[1]),
        epsilon=d(EPSILON * np.sqrt(1 - powers[1])),
        grad=gradient,
    )


def ftrl(theirs: Theirs, gradient: Any, rows: Any) -> None:
    known = {
        **theirs.handles("accum", "linear"),
        "grad": gradient,
        "lr": d(RATE),
        "l1": d(L1),
        "l2": d(L2),
        "l2_shrinkage": d(0.0),
        "lr_power": d(-0.5),
    }
    if rows is None:
        tf.raw_ops.ResourceApplyFtrlV2(**known)
    else:
        tf.raw_ops.ResourceSparseApplyFtrlV2(**known, indices=rows)


def d(value: float) -> tf.Tensor:
    return tf.constant(value, tf.float64)


Update = Callable[[Theirs, Any, Any], None]
# Ours for rows, ours for dense weights, theirs, and what their slots start with.
CASES: dict[str, tuple[RowOptimizer, Callable[[], DenseOptimizer], Update, Any]] = {
    "momentum": (
        RowMomentum(MOMENTUM),
        lambda: DenseMomentum(MOMENTUM),
        momentum,
        lambda weights: [0 * weights],
    ),
    "adagrad": (
        RowAdagrad(EPSILON, INITIAL),
        lambda: DenseAdagrad(EPSILON, INITIAL),
        adagrad,
        lambda weights: [0 * weights + INITIAL],
    ),
    "adam": (
        RowAdam(BETAS, EPSILON),
        lambda: DenseAdam(BETAS, EPSILON),
        adam,
        lambda weights: [0 * weights, 0 * weights],
    ),
    "ftrl": (
        RowFtrl(RATE * L1, RATE * L2, INITIAL),
        lambda: DenseFtrl(RATE * L1, RATE * L2, INITIAL),
        ftrl,
        lambda weights: [0 * weights + INITIAL, -np.sqrt(INITIAL) / RATE * weights],
    ),
}


def batches(every_row: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each step the rows in it, some of them twice, and the gradients of their vectors."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(STEPS):
        rows = rng.integers(0, ROWS, 5)
        if every_row:
            rows = np.concatenate([np.arange(ROWS), rows])
        found.append((rows, rng.standard_normal((len(rows), WIDTH)).astype(np.float32)))
    return found


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rows(name: str, lazy: bool) -> None:
    """Where every row is in every batch, as TensorFlow's dense weights; else as its rows."""
    optimizer, _, update, slots = CASES[name]
    if lazy and name == "adam":
        pytest.skip("TensorFlow has no operation for it; test_row_optimizers.py has the formula")
    tables = create(
        "alltoall", FusedTable((ROWS,), WIDTH, 3, 1.0), Collective(), optimizer=optimizer
    )
    weights = tables.read_rows(0, ROWS)[:, :WIDTH].astype(np.float64)
    theirs = Theirs(weights, *slots(weights))
    for rows, gradients in batches(every_row=not lazy):
        lookup = tables.lookup(tables.route(tf.constant(rows[:, None], tf.int32)))
        tables.update(lookup, [tf.constant(gradients[:, None])], tf.constant(RATE))
        distinct = np.unique(rows)
        sums = np.stack([gradients[rows == row].astype(np.float64).sum(0) for row in distinct])
        update(theirs, sums, distinct if lazy else None)
    found = tables.read_rows(0, ROWS)[:, :WIDTH]
    np.testing.assert_allclose(found, theirs.var.numpy(), rtol=1e-5, atol=2e-6)
    assert np.abs(found - weights).max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_dense_weights(name: str) -> None:
    _, make, update, slots = CASES[name]
    rng = np.random.default_rng(12)
    variable, optimizer = tf.Variable(rng.standard_normal((4, 3)).astype(np.float32)), make()
    optimizer.build({"kernel": variable})
    weights = variable.numpy().astype(np.float64)
    theirs = Theirs(weights, *slots(weights))
    for _ in range(STEPS):
        gradient = rng.standard_normal((4, 3)).astype(np.float32)
        optimizer.apply([tf.constant(gradient)], tf.constant(RATE), 1.0)
        update(theirs, gradient.astype(np.float64), None)
    np.testing.assert_allclose(variable.numpy(), theirs.var.numpy(), rtol=1e-5, atol=2e-6)
