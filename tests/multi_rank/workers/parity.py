"""Trains the same few steps in each of several settings and saves the weights of every rank."""

from __future__ import annotations

import contextlib
import itertools
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from dlrm.config import Config
from dlrm.data import Batches, Data
from dlrm.distributed.collective import Collective
from dlrm.distributed.connect import connect
from dlrm.embedding import Embedding
from dlrm.train.build import build_trainer
from dlrm.train.callback import Callback
from dlrm.train.health import Health
from dlrm.train.instruments import Instruments, StepInputs, Train
from dlrm.train.staged_step import StagedStep
from dlrm.train.step import Routes, TrainingStep
from model import build_model

SEED, STEPS, GLOBAL_BATCH, NUM_DENSE, WIDTH = 7, 20, 48, 5, 8
# One table with a single row, one larger than a batch, most smaller: duplicates in every batch.
VOCAB_SIZES = (50, 7, 1, 300, 3)
SETTINGS: list[dict[str, Any]] = [
    {"compress": compress, "xla": xla}
    for compress, xla in itertools.product((False, True), (False, True))
]
SETTINGS += [
    {"compress": True, "xla": False, "bad_ids": "zero"},
    {"compress": False, "xla": False, "embedding_grad": "sum"},
    {"compress": True, "xla": False, "amp": True, "amp_dtype": "float16"},
    {"compress": False, "xla": False, "amp": True, "amp_dtype": "bfloat16"},
]
# All that the optimizers can do, with values at which all of it counts.
EPSILON = 0.02  # smaller ones make a step of what rounding leaves of a gradient
SETTINGS += [
    {
        "compress": True,
        "xla": False,
        "bad_ids": "zero",
        "clip_norm": 0.03,
        "optimizer": "rowwise_adagrad",
        "dense_optimizer": "momentum",
        "epsilon": EPSILON,
        "weight_decay": 0.05,
        "dense_lr": 0.2,
    },
    {
        "compress": False,
        "xla": False,
        "embedding_grad": "sum",
        "clip_norm": 0.03,
        "optimizer": "adam",
        "dense_optimizer": "adam",
        "epsilon": EPSILON,
        "lr": 0.05,
    },
    {"compress": True, "xla": False, "amp": True, "amp_dtype": "float16", "clip_norm": 0.03},
]
# In each of these, every second step is taken in parts.
STAGED = list(range(len(SETTINGS), len(SETTINGS) + 4))
SETTINGS += [
    {"compress": True, "xla": False, "bad_ids": "zero"},
    {"compress": False, "xla": True, "embedding_grad": "sum"},
    {"compress": True, "xla": False, "amp": True, "amp_dtype": "float16"},
    {
        "compress": False,
        "xla": False,
        "clip_norm": 0.03,
        "ftrl_l1": 1e-3,
        "ftrl_l2": 0.01,
        "optimizer": "ftrl",
        "dense_optimizer": "adagrad",
        "epsilon": EPSILON,
    },
]


CROSS = {"interaction": "dcnv2", "cross_layers": 3, "cross_rank": 6}
SETTINGS += [
    {"compress": True, "xla": False, **CROSS},
    {"compress": False, "xla": True, **CROSS},
    {"compress": True, "xla": False, "amp": True, "amp_dtype": "float16", **CROSS},
    {"compress": True, "xla": False, "interaction": "sum"},
    {"compress": False, "xla": False, "interaction": "concat"},
]
# Ids that come and go; of the last two, every second step is taken in parts.
SETTINGS += [
    {"compress": True, "xla": False, "embedding": "dynamic"},
    {
        "compress": False,
        "xla": False,
        "embedding": "dynamic",
        "admit_after": 1,
        "evict_after": 2,
        "clip_norm": 0.1,
        "optimizer": "momentum",
        "embedding_grad": "sum",
        "lr": 0.1,
    },
]
STAGED += range(len(SETTINGS), len(SETTINGS) + 2)
SETTINGS += [
    {"compress": False, "xla": False, "embedding": "dynamic", "evict_after": 1},
    {
        "compress": True,
        "xla": False,
        "embedding": "dynamic",
        "admit_after": 2,
        "evict_after": 3,
        "optimizer": "rowwise_adagrad",
        "epsilon": EPSILON,
        "weight_decay": 0.05,
        "lr": 0.1,
    },
]


class Samples:
    """A source of random samples, some ids outside their table if `bad`."""

    def __init__(self, bad: bool) -> None:
        rng = np.random.default_rng(SEED)
        self.num_samples, self.num_dense = STEPS * GLOBAL_BATCH, NUM_DENSE
        self.vocab_sizes, self.fingerprint, self.bag_layout = VOCAB_SIZES, "", None
        self.dense = rng.random((self.num_samples, NUM_DENSE), np.float32)
        self.ids = (rng.random((self.num_samples, len(VOCAB_SIZES))) ** 2 * VOCAB_SIZES).astype(
            np.int32
        )
        if bad:
            self.ids[rng.random(self.ids.shape) < 0.05] = 1000
        self.labels = rng.integers(0, 2, self.num_samples).astype(np.float32)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples [start, stop)."""
        return self.dense[start:stop], self.ids[start:stop], self.labels[start:stop]


class EverySecondInParts(Instruments):
    """Takes the first step in parts, the second one as it is, and so on."""

    def __init__(self, step: TrainingStep) -> None:
        self._staged = StagedStep(step, lambda part: contextlib.nullcontext())

    def take(self, number: int, train: Train, inputs: StepInputs) -> tuple[Health, Routes]:
        """See `Instruments`."""
        return super().take(number, train if number % 2 else self._staged.train, inputs)


def steps_of(settings: dict[str, Any]) -> int:
    """In 16 bits a ReLU soon takes the other side of zero and the ways part: one step only."""
    return 1 if settings.get("amp") else STEPS


def config_of(**settings: Any) -> Config:
    """The small model of this test; a constant learning rate large enough to move weights."""
    return Config.of(
        use_synthetic_dataset=True,
        global_batch_size=GLOBAL_BATCH,
        embedding_dim=WIDTH,
        bottom_mlp=(16, WIDTH),
        top_mlp=(16, 8, 1),
        seed=SEED,
        warmup_steps=0,
        decay_start_step=1000,
        **{"lr": 0.5, **settings},
    )


def rows_of(tables: Embedding, collective: Collective, *, begin: bool = False) -> np.ndarray:
    """This rank's rows as a lookup finds them, with their state; the first ones if `begin`."""
    if tables.dynamic is None:
        return tables.read_rows(0, tables.local_rows)
    keys = np.arange(collective.rank, tables.table.rows, collective.size)
    if begin:
        return tables.dynamic.layout.initial(tf.constant(keys)).numpy()
    return tables.dynamic.fetch(tf.constant(keys, tables.dynamic.key_dtype)).numpy()


def main(folder: str) -> None:
    """Saves `settings index`-`rank`.npz: this rank's rows and the dense weights, begin and end."""
    collective = connect()
    for index, settings in enumerate(SETTINGS):
        samples = Samples(bad=settings.get("bad_ids") == "zero")
        samples.num_samples = steps_of(settings) * GLOBAL_BATCH
        batches = Batches(
            samples, GLOBAL_BATCH, collective.rank, collective.size, drop_remainder=True
        )
        data = Data(batches, batches, NUM_DENSE, VOCAB_SIZES, {})
        backend = settings.get("embedding", "alltoall")
        trainer = build_trainer(config_of(**settings), backend, collective, data, build_model)
        if index in STAGED:
            trainer.instruments = EverySecondInParts(trainer.step)
        weights = trainer.step.dense_part.weights
        begin = [variable.numpy() for variable in weights]
        begin_rows = rows_of(trainer.step.embedding, collective, begin=True)
        trainer.train([batches], batches, Callback())
        np.savez(
            f"{folder}/{index}-{collective.rank}.npz",
            *begin,
            *[variable.numpy() for variable in weights],
            begin_rows=begin_rows[:, :WIDTH],
            rows=rows_of(trainer.step.embedding, collective)[:, :WIDTH],
        )


if __name__ == "__main__":
    main(sys.argv[1])
