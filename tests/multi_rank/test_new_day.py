"""Training goes on with a new day's data in wider tables, through kills and on other ranks."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dlrm.checkpoint.directory import checkpoint_name, finished, step_of
from dlrm.checkpoint.manifest import read_manifest
from dlrm.embedding import FusedTable
from dlrm.formats import file_names
from tests.support import jobs
from tests.support.jobs import Job
from tests.support.tiny_data import write_split

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

OLD, NEW = (300, 40, 5), (300, 61, 9)
BATCH, STEPS, WIDTH, SEED = 32, 12, 8, 5
SETTINGS: dict[str, Any] = {
    "global_batch_size": BATCH,
    "embedding_dim": WIDTH,
    "bottom_mlp": f"16,{WIDTH}",
    "top_mlp": "16,1",
    "optimizer": "adam",
    "dense_optimizer": "adam",
    "lr": 0.01,
    "warmup_steps": 0,
    "decay_start_step": 1000,
    "decay_steps": 1000,
    "eval_in_last": True,
    "auc_target": 1.0,
    "seed": SEED,
    "checkpoint_interval": 1,
    "keep_checkpoints": 100,
    "log_interval": 1,
}


def write_day(folder: Path, vocab_sizes: tuple[int, ...], seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for part, samples in (("train", BATCH * STEPS), ("test", 100)):
        labels = generator.integers(0, 2, samples).astype("<i4")
        dense = generator.random([samples, 3]).astype("<f4")
        ids = generator.integers(0, vocab_sizes, [samples, 3]).astype("<i4")
        described = {"dense_log": False, "num_dense": 3}
        write_split(folder / part, labels, dense, ids, vocab_sizes, **described)
    return folder


def training(ranks: int, **settings: Any) -> list[str | Path]:
    words = [f"--{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    return jobs.on_ranks(ranks, "python3", "main.py", *words)


def tables_of(checkpoint: Path) -> list[np.ndarray]:
    """Rows and state of each table, from the files alone; Adam's count is the last column."""
    manifest = read_manifest(checkpoint)
    fused = np.empty((sum(manifest.model.vocab_sizes), 3 * WIDTH + 1), np.float32)
    for rank in range(manifest.ranks):
        tensors = load_file(checkpoint / f"tables-{rank:05d}-of-{manifest.ranks:05d}.safetensors")
        others = [tensors[name] for name in sorted(tensors) if name != "rows"]
        fused[rank :: manifest.ranks] = np.concatenate([tensors["rows"], *others], axis=1)
    return np.split(fused, np.cumsum(manifest.model.vocab_sizes)[:-1])


def test_a_day_is_appended(tmp_path: Path) -> None:
    """Day 1 on 2 ranks; day 2 on 2 with `kill -9`, without it, and its first step on 1."""
    print(f"seed {SEED}")
    first, second = (write_day(tmp_path / f"day{n}", v, n) for n, v in ((1, OLD), (2, NEW)))
    old = tmp_path / "old"

    ended = Job(tmp_path / "1.txt", training(2, data_dir=first, checkpoint_dir=old)).end()
    assert ended.code == 0, ended.output

    append = {"data_dir": second, "append_day": old}
    whole = tmp_path / "whole"
    ended = Job(tmp_path / "2.txt", training(2, checkpoint_dir=whole, **append)).end()
    assert ended.code == 0, ended.output
    assert "345 rows as trained, 25 new ones" in ended.output
    assert [step_of(path) for path in finished(whole)] == list(range(1, STEPS + 1))

    alone = tmp_path / "alone"
    command = training(1, checkpoint_dir=alone, early_stop=1, **append)
    ended = Job(tmp_path / "3.txt", command).end()
    assert ended.code == 0, ended.output

    # After the first step, rows outside its batch are those of the day before, or fresh.
    ids = np.fromfile(second / "train" / file_names.CATEGORY, "<i4").reshape(-1, 3)[:BATCH]
    before = tables_of(old / checkpoint_name(STEPS))
    begin = np.cumsum([0, *NEW])
    for folder in (whole, alone):
        after = tables_of(folder / checkpoint_name(1))
        for table, (rows, size) in enumerate(zip(OLD, NEW)):
            untouched = ~np.isin(np.arange(size), ids[:, table])
            fresh = np.zeros((size - rows, 3 * WIDTH + 1), np.float32)
            keys = np.arange(begin[table] + rows, begin[table] + size)
            fresh[:, :WIDTH] = FusedTable(NEW, WIDTH, SEED).initial(keys)
            expected = np.concatenate([before[table], fresh])
            np.testing.assert_array_equal(after[table][untouched], expected[untouched])
            counts = after[table][~untouched, -1] - expected[~untouched, -1]
            assert (counts == 1).all(), "Adam's count of a row goes on"
    dense = [
        load_file(path / "dense.safetensors")
        for path in (old / checkpoint_name(STEPS), whole / checkpoint_name(1))
    ]
    steps = [found["adam.steps"].item() for found in dense]
    assert steps == [STEPS, STEPS + 1], "and so does that of the dense layers"

    # Killed after a step, and started again without the flag: nothing is widened twice.
    killed = tmp_path / "killed"
    command = training(2, checkpoint_dir=killed, **append)
    with Job(tmp_path / "4.txt", command) as job:
        job.wait_for("a checkpoint", lambda: finished(killed))
        job.send(1, signal.SIGKILL)
        assert job.end().code != 0
    ended = Job(tmp_path / "5.txt", training(2, data_dir=second, checkpoint_dir=killed)).end()
    assert ended.code == 0, ended.output
    assert ended.count("resumed from") == 1
    assert "a new day from" not in ended.output
    last = checkpoint_name(STEPS)
    assert jobs.same(jobs.weights(killed / last), jobs.weights(whole / last))
