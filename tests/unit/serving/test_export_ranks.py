"""Checkpoints that several ranks save together export to the same artifact as one rank's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.distributed.collective import Collective
from serving.__main__ import main
from serving.row_frequencies import write_counts
from tests.support.checkpoints import ArrayTables, random_weights
from tests.support.thread_ranks import on_ranks

MODEL = ModelShape(3, (400, 1, 90), 6, (5, 6), (8, 1))
RUN = RunRecord(MODEL, {"lr": 2.0, "seed": 4}, {"training": "1a2b", "test": "3c4d"})


def save(folder: Path, ranks: int) -> None:
    rows = np.random.default_rng(7).normal(size=(sum(MODEL.vocab_sizes), 6)).astype(np.float32)
    dense = {name: tf.Variable(value) for name, value in random_weights(MODEL, seed=7).items()}

    def save_on(collective: Collective) -> None:
        own = ArrayTables(rows[collective.rank :: collective.size])
        saved = Checkpoints(folder, collective, RUN, keep=1)
        assert saved.save(State(dense, own), Position(30, 1, 64))

    on_ranks(ranks, save_on)


def test_the_number_of_ranks_leaves_no_trace(tmp_path: Path) -> None:
    counts = np.random.default_rng(8).integers(0, 40, sum(MODEL.vocab_sizes))
    write_counts(tmp_path / "counts", counts, MODEL.vocab_sizes)
    for ranks in (1, 2, 3):
        save(tmp_path / f"c{ranks}", ranks)
        for name, words in (("plain", []), ("hot", [f"--row_frequencies={tmp_path / 'counts'}"])):
            out = tmp_path / name / str(ranks)
            checkpoint = str(tmp_path / f"c{ranks}")
            flags = ["--no_saved_model", "--tables=int8_rows", *words]
            assert main(["export", checkpoint, str(out), *flags]) == 0
            for path in out.iterdir():
                assert path.read_bytes() == (out.parent / "1" / path.name).read_bytes(), path.name
