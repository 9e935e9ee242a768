"""What watches the training loop: by default, names for NVIDIA's profilers and nothing else."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple

import nvtx
import tensorflow as tf

from dlrm.train.health import Health
from dlrm.train.step import Routes

DATA, STEP, EVALUATION, CHECKPOINT = "data", "step", "evaluation", "checkpoint"
DOMAIN = "dlrm"  # the group under which profilers list our ranges

Train = Callable[..., tuple[Health, Routes]]


class StepInputs(NamedTuple):
    """The arguments of `TrainingStep.train`, which explains them."""

    dense: tf.Tensor
    labels: tf.Tensor
    routes: Routes
    next_ids: tf.Tensor
    learning_rate: float
    signal: float


@functools.cache
def nvtx_range(name: str) -> AbstractContextManager[object]:
    """A range of this name, which may be entered again; without a profiler it costs 2 us."""
    return nvtx.annotate(name, domain=DOMAIN)


class Instruments:
    """Marks what the loop does as NVTX ranges. All ranks make the same calls in the same order.

    Attributes:
        note: A line for the user before the training; empty if there is nothing to say.
    """

    note = ""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Opens a context around what the loop does outside of steps.

        Args:
            name: `DATA`, `EVALUATION` or `CHECKPOINT`.
        """
        return nvtx_range(name)

    def take(self, number: int, train: Train, inputs: StepInputs) -> tuple[Health, Routes]:
        """Takes a step.

        Args:
            number: Number of steps done before.
            train: `TrainingStep.train`.
            inputs: Its arguments.
        """
        with nvtx_range(STEP):
            return train(*inputs)

    def stop(self) -> None:
        """The training has ended, maybe by an error."""

    def report(self) -> list[str]:
        """Returns what was found, in lines for the user. All ranks call it, after the training."""
        return []
