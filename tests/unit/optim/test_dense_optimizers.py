"""Optimizers of the dense layers against float64 NumPy, and their state in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import MisfitError, RunRecord, State
from dlrm.distributed.collective import Collective
from dlrm.embedding import FusedTable, create
from dlrm.optim.adaptive_dense import DenseAdagrad, DenseAdam, DenseFtrl
from dlrm.optim.dense_optimizers import (
    DenseMomentum,
    DenseOptimizer,
    DenseSGD,
    DenseWeightDecay,
)
from tests.support import reference_optimizers
from tests.support.reference_optimizers import Rule

RATE, SCALE = 0.1, 0.25
RUN = RunRecord(ModelShape(1, (3,), 2, (2,), (1,)), {}, {})


def weights() -> dict[str, tf.Variable]:
    rng = np.random.default_rng(3)
    return {
        "kernel": tf.Variable(rng.standard_normal((5, 4)).astype(np.float32)),
        "bias": tf.Variable(rng.standard_normal(4).astype(np.float32)),
    }


MOMENTUM, EPSILON, INITIAL, L1, L2, DECAY = 0.8, 0.05, 0.01, 0.2, 0.3, 0.4
OPTIMIZERS: dict[str, tuple[Callable[[], DenseOptimizer], Rule, list[str]]] = {
    "sgd": (DenseSGD, reference_optimizers.sgd(), []),
    "momentum": (
        lambda: DenseMomentum(MOMENTUM),
        reference_optimizers.momentum(MOMENTUM),
        ["momentum.velocity"],
    ),
    "adagrad": (
        lambda: DenseAdagrad(EPSILON, INITIAL),
        reference_optimizers.adagrad(EPSILON, INITIAL),
        ["adagrad.sum"],
    ),
    "ftrl": (
        lambda: DenseFtrl(RATE * L1, RATE * L2, INITIAL),
        reference_optimizers.ftrl(RATE, L1, L2, INITIAL),
        ["ftrl.sum", "ftrl.held"],
    ),
    "sgd with decay": (
        lambda: DenseWeightDecay(DenseSGD(), DECAY),
        reference_optimizers.decayed(reference_optimizers.sgd(), DECAY),
        [],
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_state_follow_the_reference(name: str) -> None:
    make, rule, kinds = OPTIMIZERS[name]
    variables, optimizer = weights(), make()
    optimizer.build(variables)
    expected = {n: variable.numpy().astype(np.float64) for n, variable in variables.items()}
    states = {n: [np.full_like(w, first) for first in rule.first] for n, w in expected.items()}
    compiled = tf.function(lambda *given: optimizer.apply(given, tf.constant(RATE), SCALE))
    rng = np.random.default_rng(4)
    for _ in range(5):
        gradients = [rng.standard_normal(w.shape).astype(np.float32) for w in expected.values()]
        compiled(*map(tf.constant, gradients))
        for n, gradient in zip(expected, gradients):
            scaled = SCALE * gradient.astype(np.float64)
            expected[n], states[n] = rule.step(expected[n], states[n], scaled, RATE)
    named = {f"{kind}.{n}" for kind in kinds for n in expected}
    assert optimizer.state.keys() == named
    for n, value in expected.items():
        np.testing.assert_allclose(variables[n].numpy(), value, rtol=1e-5, atol=1e-6)
        for kind, part in zip(kinds, states[n]):
            found = optimizer.state[f"{kind}.{n}"].numpy()
            np.testing.assert_allclose(found, part, rtol=1e-5, atol=2e-7, err_msg=kind)


def test_adam_follows_the_reference() -> None:
    """By the formulas of the paper, with its correction of the first steps, in float64."""
    betas, epsilon = (0.95, 0.999), 1e-3  # an epsilon that counts
    variables = weights()
    optimizer = DenseAdam(betas, epsilon)
    optimizer.build(variables)
    expected = [variable.numpy().astype(np.float64) for variable in variables.values()]
    means = [np.zeros_like(value) for value in expected]
    squares = [np.zeros_like(value) for value in expected]
    compiled = tf.function(lambda *given: optimizer.apply(given, tf.constant(RATE), SCALE))
    rng = np.random.default_rng(4)
    for step in range(1, 8):
        gradients = [rng.standard_normal(value.shape).astype(np.float32) for value in expected]
        compiled(*map(tf.constant, gradients))
        for value, mean, square, gradient in zip(expected, means, squares, gradients):
            scaled = SCALE * gradient.astype(np.float64)
            mean += (1 - betas[0]) * (scaled - mean)
            square += (1 - betas[1]) * (scaled**2 - square)
            corrected = mean / (1 - betas[0] ** step), square / (1 - betas[1] ** step)
            value -= RATE * corrected[0] / (np.sqrt(corrected[1]) + epsilon)
    for variable, value in zip(variables.values(), expected):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=2e-6)
    for kind, values in (("mean", means), ("square", squares)):
        for name, value in zip(variables, values):
            found = optimizer.state[f"adam.{kind}.{name}"].numpy()
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-7)
    assert optimizer.state["adam.steps"].numpy() == 7


ALL: dict[str, Callable[[], DenseOptimizer]] = {
    **{name: make for name, (make, _, _) in OPTIMIZERS.items()},
    "adam": DenseAdam,
}


@pytest.mark.parametrize("name", ALL)
def test_no_step_is_taken_that_is_refused(name: str) -> None:
    """Weights and state wait for the checks before the learning rate."""
    variables, optimizer = weights(), ALL[name]()
    optimizer.build(variables)
    before = {n: v.numpy() for n, v in {**variables, **optimizer.state}.items()}

    @tf.function
    def refused() -> None:
        with tf.control_dependencies([tf.debugging.Assert(tf.constant(False), ["refused"])]):
            rate = tf.constant(RATE) * 1.0
        optimizer.apply([tf.ones_like(v) for v in variables.values()], rate, 1.0)

    with pytest.raises(tf.errors.InvalidArgumentError):
        refused()
    for n, variable in {**variables, **optimizer.state}.items():
        np.testing.assert_array_equal(variable.numpy(), before[n])


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    def steps(optimizer: DenseOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            rng = np.random.default_rng(step)
            gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), 4)]
            optimizer.apply(list(map(tf.constant, gradients)), tf.constant(RATE), SCALE)

    whole, half, resumed = (ALL[name]() for _ in range(3))
    expected, saved, loaded = (made(optimizer) for optimizer in (whole, half, resumed))
    steps(whole, 0, 6)
    steps(half, 0, 3)
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(saved, Position(3, 0, 0))
    assert resume("auto", tmp_path, RUN, loaded, Collective())
    steps(resumed, 3, 6)
    for n, variable in expected.dense.items():
        np.testing.assert_array_equal(variable.numpy(), loaded.dense[n].numpy(), err_msg=n)


def made(optimizer: DenseOptimizer) -> State:
    """Weights, their optimizer's state and small tables."""
    variables = weights()
    optimizer.build(variables)
    tables = create("alltoall", FusedTable((3,), 2, seed=1), Collective())
    return State({**variables, **optimizer.state}, tables)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(made(DenseSGD()), Position(1, 0, 0))
    with pytest.raises(
        MisfitError, match="for the dense layers expected adagrad.sum.bias.*found nothing"
    ):
        resume("auto", tmp_path, RUN, made(DenseAdagrad()), Collective())
    loaded = made(DenseAdagrad(initial=0.5))
    assert resume("auto", tmp_path, RUN, loaded, Collective(), ignore_optimizer_change=True)
    assert (loaded.dense["adagrad.sum.bias"].numpy() == 0.5).all()
