"""Optimizers of the dense layers against float64 NumPy, and their state in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from dlrm.optim.dense_optimizers import DenseAdam, DenseOptimizer, DenseSGD

RATE, SCALE = 0.1, 0.25
RUN = RunRecord(ModelShape(1, (3,), 2, (2,), (1,)), {}, {})


class DenseAdagrad:
    """weight -= learning_rate * gradient / sqrt(sum of squared gradients)."""

    def __init__(self) -> None:
        self._variables: list[tf.Variable] = []
        self.state: Mapping[str, tf.Variable] = {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        self._variables = list(variables.values())
        self.state = {
            f"adagrad.accumulator.{name}": tf.Variable(
                tf.fill(variable.shape, 0.1), trainable=False
            )
            for name, variable in variables.items()
        }

    def apply(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, gradient_scale: float
    ) -> None:
        for variable, total, gradient in zip(self._variables, self.state.values(), gradients):
            tf.raw_ops.ResourceApplyAdagradV2(
                var=variable.handle,
                accum=total.handle,
                lr=learning_rate,
                epsilon=0.0,
                grad=gradient * gradient_scale,
            )


def weights() -> dict[str, tf.Variable]:
    rng = np.random.default_rng(3)
    return {
        "kernel": tf.Variable(rng.standard_normal((5, 4)).astype(np.float32)),
        "bias": tf.Variable(rng.standard_normal(4).astype(np.float32)),
    }


@pytest.mark.parametrize("adagrad", [False, True])
def test_weights_follow_the_reference(adagrad: bool) -> None:
    variables = weights()
    optimizer: DenseOptimizer = DenseAdagrad() if adagrad else DenseSGD()
    optimizer.build(variables)
    expected = [variable.numpy().astype(np.float64) for variable in variables.values()]
    totals = [np.full_like(value, 0.1) for value in expected]
    compiled = tf.function(lambda *given: optimizer.apply(given, tf.constant(RATE), SCALE))
    rng = np.random.default_rng(4)
    for _ in range(5):
        gradients = [rng.standard_normal(value.shape).astype(np.float32) for value in expected]
        compiled(*map(tf.constant, gradients))
        for value, total, gradient in zip(expected, totals, gradients):
            scaled = SCALE * gradient.astype(np.float64)
            total += scaled**2
            value -= RATE * scaled / (np.sqrt(total) if adagrad else 1.0)
    for variable, value in zip(variables.values(), expected):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
    assert list(optimizer.state) == (
        ["adagrad.accumulator.kernel", "adagrad.accumulator.bias"] if adagrad else []
    )


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


def test_adam_takes_no_step_that_is_refused() -> None:
    """Weights, means and the number of steps wait for the checks before the learning rate."""
    variables = weights()
    optimizer = DenseAdam()
    optimizer.build(variables)
    before = {name: v.numpy() for name, v in {**variables, **optimizer.state}.items()}

    @tf.function
    def refused() -> None:
        with tf.control_dependencies([tf.debugging.Assert(tf.constant(False), ["refused"])]):
            rate = tf.constant(RATE) * 1.0
        optimizer.apply([tf.ones_like(v) for v in variables.values()], rate, 1.0)

    with pytest.raises(tf.errors.InvalidArgumentError):
        refused()
    for name, variable in {**variables, **optimizer.state}.items():
        np.testing.assert_array_equal(variable.numpy(), before[name])


def test_adam_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    def steps(optimizer: DenseOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            rng = np.random.default_rng(step)
            gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), 4)]
            optimizer.apply(list(map(tf.constant, gradients)), tf.constant(RATE), SCALE)

    whole, half, resumed = DenseAdam(), DenseAdam(), DenseAdam()
    expected, saved, loaded = (made(optimizer) for optimizer in (whole, half, resumed))
    steps(whole, 0, 6)
    steps(half, 0, 3)
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(saved, Position(3, 0, 0))
    assert resume("auto", tmp_path, RUN, loaded, Collective())
    steps(resumed, 3, 6)
    for name, variable in expected.dense.items():
        np.testing.assert_array_equal(variable.numpy(), loaded.dense[name].numpy(), err_msg=name)


def made(optimizer: DenseOptimizer) -> State:
    """Weights, their optimizer's state and small tables."""
    variables = weights()
    optimizer.build(variables)
    tables = create("alltoall", FusedTable((3,), 2, seed=1), Collective())
    return State({**variables, **optimizer.state}, tables)


def test_the_state_is_checkpointed_with_the_weights(tmp_path: Path) -> None:
    saved = made(DenseAdagrad())
    for number, variable in enumerate(saved.dense.values()):
        variable.assign(tf.fill(variable.shape, float(number)))
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(saved, Position(1, 0, 0))
    loaded = made(DenseAdagrad())
    assert resume("auto", tmp_path, RUN, loaded, Collective())
    for number, variable in enumerate(loaded.dense.values()):
        np.testing.assert_array_equal(variable.numpy(), np.full(variable.shape, number))


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(made(DenseSGD()), Position(1, 0, 0))
    with pytest.raises(
        MisfitError, match="for the dense layers expected adagrad.accumulator.bias.*found nothing"
    ):
        resume("auto", tmp_path, RUN, made(DenseAdagrad()), Collective())
