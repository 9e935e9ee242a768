"""Saves, resumes and trains on with this number of ranks: resume.py FOLDER SIZE ...

For each SIZE named, resumes from FOLDER/from-SIZE, which that number of ranks has written, and
trains `MORE` further steps. Then, unless it is there, trains `STEPS` steps anew and saves
FOLDER/from-N, N its own number of ranks. Every rank leaves its weights and logits as
FOLDER/WHAT-RANK.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dlrm.checkpoint import state as checkpoint_state
from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import Config
from dlrm.data import Batches, Data
from dlrm.distributed.collective import Collective
from dlrm.distributed.connect import connect
from dlrm.train.build import build_trainer
from dlrm.train.callback import Callback
from dlrm.train.loop import Trainer
from model import build_model
from tests.multi_rank.workers.parity import (
    GLOBAL_BATCH,
    NUM_DENSE,
    VOCAB_SIZES,
    Samples,
    config_of,
)

STEPS, MORE = 7, 10


def describe(config: Config) -> RunRecord:
    """What a checkpoint of the small model records."""
    shape = ModelShape(
        NUM_DENSE,
        VOCAB_SIZES,
        config.model.embedding_dim,
        config.model.bottom_mlp,
        config.model.top_mlp,
    )
    return RunRecord(shape, config.flat(), {"training": "samples"})


def fresh(collective: Collective) -> tuple[Trainer, Batches, RunRecord]:
    """A trainer as it begins, the batches of the epoch, and what a checkpoint records."""
    config = config_of(compress=False, xla=False)
    batches = Batches(
        Samples(bad=False), GLOBAL_BATCH, collective.rank, collective.size, drop_remainder=True
    )
    data = Data(batches, batches, NUM_DENSE, VOCAB_SIZES, {})
    return (
        build_trainer(config, "alltoall", collective, data, build_model),
        batches,
        describe(config),
    )


def train(trainer: Trainer, batches: Batches, first: int, last: int) -> None:
    """Trains steps first to last - 1 of the epoch."""
    rest = batches.starting_at(first)
    rest.steps = last
    trainer.train([rest], batches, Callback(), first_step=first)


def leave(path: Path, trainer: Trainer, collective: Collective, **more: Any) -> None:
    """Saves this rank's weights."""
    np.savez(
        f"{path}-{collective.rank}.npz",
        rows=trainer.step.embedding.read_rows(0, trainer.step.embedding.local_rows),
        **{name: variable.numpy() for name, variable in trainer.step.dense.items()},
        **more,
    )


def logits(trainer: Trainer, batches: Batches) -> np.ndarray:
    """Of this rank's share of the epoch's first batch."""
    batch = next(iter(batches))
    routes = trainer.step.route(batch.ids)
    vectors = trainer.step.embedding.lookup(routes).vectors
    return trainer.step.dense_part.logits(tf.constant(batch.dense), vectors).numpy()


def main(folder: Path, sizes: list[int]) -> None:
    """Resumes what `sizes` ranks wrote, then writes a checkpoint for others."""
    checkpoint_state.PIECE_BYTES = 1000  # several pieces of a small table
    collective = connect()
    for size in sizes:
        trainer, batches, run = fresh(collective)
        source = folder / f"from-{size}"
        state = State(trainer.step.dense, trainer.step.embedding)
        resumed = resume(str(source), None, run, state, collective)
        assert resumed is not None
        assert resumed.position == Position(STEPS, 0, STEPS * GLOBAL_BATCH)
        found = logits(trainer, batches)
        train(trainer, batches, STEPS, STEPS + MORE)
        leave(folder / f"{size}-to-{collective.size}", trainer, collective, logits=found)

    if (folder / f"from-{collective.size}").exists():
        return
    trainer, batches, run = fresh(collective)
    train(trainer, batches, 0, STEPS)
    checkpoints = Checkpoints(folder / f"from-{collective.size}", collective, run, keep=1)
    position = Position(STEPS, 0, STEPS * GLOBAL_BATCH)
    checkpoints.save(State(trainer.step.dense, trainer.step.embedding), position)
    found = logits(trainer, batches)
    leave(folder / f"at-checkpoint-{collective.size}", trainer, collective, logits=found)
    train(trainer, batches, STEPS, STEPS + MORE)
    leave(folder / f"uninterrupted-{collective.size}", trainer, collective, logits=found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
