"""Trains from one seed with and without the fused operations; saves the losses and the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dlrm.data import Batches, Data
from dlrm.distributed.connect import connect
from dlrm.train.build import build_trainer
from dlrm.train.callback import Callback
from model import build_model
from tests.multi_rank.workers import parity

SETTINGS: list[dict[str, bool]] = [
    {},
    {"custom_interact": True},
    {"custom_interact": True, "xla": True},
    {"custom_interact": True, "custom_mlp": True},
    {"custom_interact": True, "custom_mlp": True, "xla": True},
]


class Losses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Step after step."""
        self.values.append(loss)


def main(folder: Path) -> None:
    """Writes losses.INDEX.npy and weights.INDEX.npy, by rank 0."""
    collective = connect(60.0)
    for index, settings in enumerate(SETTINGS):
        config = parity.config_of(**settings, log_interval=1)
        batches = Batches(
            parity.Samples(bad=False),
            parity.GLOBAL_BATCH,
            collective.rank,
            collective.size,
            drop_remainder=True,
        )
        data = Data(batches, batches, parity.NUM_DENSE, parity.VOCAB_SIZES, {})
        trainer = build_trainer(config, "alltoall", collective, data, build_model)
        losses = Losses()
        trainer.train([batches], batches, losses)
        if collective.rank == 0:
            np.save(folder / f"losses.{index}.npy", losses.values)
            weights = [np.ravel(weight) for weight in trainer.step.dense.values()]
            np.save(folder / f"weights.{index}.npy", np.concatenate(weights))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
