"""MLPerf's benchmark as a user runs it: trainings, judged, packed and scored."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.mlperf_logs import read_log, write_log
from tests.support.processes import run
from tests.support.tiny_data import write_split

CLICKS = np.array([0.05, 0.05, 0.95, 0.95, 0.5])  # the rate by the first table's id
FLAGS = [
    *("--global_batch_size=64", "--embedding_dim=8", "--bottom_mlp=16,16,8"),
    *("--top_mlp=16,16,16,16,1", "--lr=0.5", "--warmup_steps=0", "--epochs=8"),
    *("--evals_per_epoch=1", "--auc_target=0.8025", "--mlperf_division=closed"),
]


def write_learnable(folder: Path, samples: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = random.integers(0, (5, 3), [samples, 2]).astype("<i4")
    labels = (random.random(samples) < CLICKS[ids[:, 0]]).astype("<i4")
    dense = random.integers(0, 9, [samples, 2]).astype("<i4")
    write_split(folder, labels, dense, ids, (5, 3), num_dense=2)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to clear the page cache")
def test_the_last_of_five_runs_makes_a_submission(tmp_path: Path) -> None:
    """Four were done before, as in a series that was interrupted; the fifth is real."""
    pytest.importorskip("mlperf_logging", reason="run `make operate-setup`")
    write_learnable(tmp_path / "data" / "train", 4096, seed=1)
    write_learnable(tmp_path / "data" / "test", 1024, seed=2)
    logs = [tmp_path / "out" / "logs" / f"result_{number}.txt" for number in range(5)]
    logs[0].parent.mkdir(parents=True)
    for seed, log in enumerate(logs[:4]):
        write_log(log, 0.7, 0.81, seed=-seed, global_batch_size=64)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tools.mlperf",
        "run",
        tmp_path / "out",
        "--runs",
        "5",
    ]
    flags = ["--", "main.py", f"--data_dir={tmp_path / 'data'}", *FLAGS]
    ended = run([*command, "-np", "1", *flags], time_limit=600)
    assert ended.code == 0, ended.output
    assert ended.count("done before, and kept") == 4
    assert len(re.findall(r"compliance checker: SUCCESS$", ended.output, re.MULTILINE)) == 5
    assert "package checker: SUCCESS" in ended.output
    assert "repository checker: SUCCESS" in ended.output
    assert re.search(r"^score: \d+\.\d+ minutes", ended.output, re.MULTILINE)
    events = {event["key"]: event for event in read_log(logs[4])}
    assert f"result_4.txt: 1 rank, seed {events['seed']['value']}" in ended.output
    assert events["train_samples"]["value"] == 4096
    assert events["global_batch_size"]["value"] == 64
    assert events["run_stop"]["metadata"]["status"] == "success"
