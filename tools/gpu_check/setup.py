"""What all checks share: their outcomes, and the training that several of them do."""

from __future__ import annotations

import gc
import time
from typing import Any, Callable, NamedTuple

from dataset import open_data
from dlrm import embedding
from dlrm.config import Config
from dlrm.data import Data
from dlrm.distributed import devices
from dlrm.distributed.collective import Collective
from dlrm.train.build import build_trainer
from dlrm.train.callback import Callback
from dlrm.train.loop import Trainer
from model import build_model

STEPS = 10  # of a training


class CheckResult(NamedTuple):
    """What a check found.

    Attributes:
        summary: The text in the line of the report.
        data: The entry in the JSON file.
    """

    summary: str
    data: Any


class SkippedError(Exception):
    """The check cannot be done on this machine; the message says why."""


class FailedError(Exception):
    """The check failed; the arguments are its summary and its data."""


def expect(met: bool, summary: str, data: Any = None) -> None:
    """Fails the check unless `met`."""
    if not met:
        raise FailedError(summary, data)


class TrainingRecorder(Callback):
    """Records the losses of a training and when each was reported.

    Attributes:
        losses: The reported losses, in order.
        times: When each was reported, in seconds of `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Records a loss."""
        self.losses.append(loss)
        self.times.append(time.perf_counter())


class CheckSetup:
    """The ranks, and a training of the default model on synthetic data.

    Args:
        collective: The ranks.
        batch: The global batch size.
    """

    def __init__(self, collective: Collective, batch: int) -> None:
        self.collective = collective
        self.batch = batch

    def require_gpu(self) -> None:
        """Skips a check of what has kernels for GPUs only, on a machine without a GPU."""
        if not devices.has_gpu():
            raise SkippedError("no GPU")

    def config(self, **settings: Any) -> Config:
        """Returns the given settings over those of the checks: a few steps that all report."""
        shared = {"early_stop": STEPS, "log_interval": 1, "lr": 0.1, "warmup_steps": 0}
        batch = self.batch
        return Config.of(
            use_synthetic_dataset=True, global_batch_size=batch, **{**shared, **settings}
        )

    def data(self, config: Config) -> Data:
        """Returns this rank's share of the data."""
        return open_data(config, self.collective.rank, self.collective.size)

    def trainer(self, config: Config) -> Trainer:
        """Returns a trainer whose tables and weights depend on the settings alone."""
        gc.collect()  # frees the tables of the previous check
        backend = embedding.choose(config.embedding.embedding).name
        return build_trainer(config, backend, self.collective, self.data(config), build_model)

    def train(self, trainer: Trainer, config: Config) -> TrainingRecorder:
        """Trains from the start of the data and returns the record."""
        recorder = TrainingRecorder()
        trainer.train([self.data(config).train], [], recorder)
        return recorder


Check = Callable[[CheckSetup], CheckResult]
