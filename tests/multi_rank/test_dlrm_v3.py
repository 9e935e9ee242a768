"""DLRMv3's training on any number of ranks, as users start it: parity, resume, kills, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from dlrm.checkpoint.directory import finished, step_of
from dlrm.checkpoint.manifest import read_manifest
from dlrm_v3.data.stream import open_stream
from tests.support import jobs
from tests.support.jobs import Job, code_of_ranks, errors
from tests.support.processes import Ended, run
from tests.support.tiny_stream import write_stream

PROGRAM = ("-m", "dlrm_v3.train")
RESUMABLE = 75
TIME_LIMIT = 240.0
SETTINGS: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "attention_dim": 8,
    "value_dim": 8,
    "hidden": 16,
    "max_history": 24,
    "input_dropout": 0.2,
    "output_dropout": 0.1,
    "table_range": 1.0,
    "tasks": "rating",
    "table_lr": 0.05,
    # Adam divides by this where a gradient is little more than rounding.
    "dense_epsilon": 1e-3,
    "checkpoint_timestamps": 1,
    "log_interval": 1,
}
Values = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("stream") / "data")


@pytest.fixture(scope="module")
def global_batch(data: Path) -> int:
    """Of which the last batch of a timestamp has one request: not all ranks have one."""
    requests = [len(open_stream(data).users(timestamp, "train")) for timestamp in range(3)]
    return next(batch for batch in range(10, 40) if 1 in [n % batch for n in requests])


def command(ranks: int, data: Path, **settings: Any) -> list[str | Path]:
    words = [f"--{n}={v}" for n, v in {**SETTINGS, "data_dir": data, **settings}.items()]
    if ranks == 1:
        return [sys.executable, *PROGRAM, *words]
    return [sys.executable, "-m", "launch", "-np", str(ranks), "--", *PROGRAM, *words]


def values_of(checkpoint: Path) -> Values:
    """All tensors of a checkpoint; rows and their state in order of their keys."""
    ranks, found = read_manifest(checkpoint).ranks, {}
    tensors = jobs.weights(checkpoint)
    for name, value in tensors.items():
        file, _, tensor = name.partition(" ")
        if file.startswith("tables-00000"):
            shares = [
                tensors[f"{file.replace('tables-00000', f'tables-{r:05d}')} {tensor}"]
                for r in range(ranks)
            ]
            table = np.empty((sum(map(len, shares)), *value.shape[1:]), value.dtype)
            for rank, share in enumerate(shares):
                table[rank::ranks] = share
            found[tensor] = table
        elif not file.startswith("tables"):
            found[tensor] = value
    return found


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def trained(
    data: Path, global_batch: int, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The folder of an uninterrupted run: `run` and `checkpoints`."""

    @cache
    def folder_of(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        folders = {"run_dir": folder / "run", "checkpoint_dir": folder / "checkpoints"}
        settings = {**folders, "global_batch_size": global_batch, "keep_checkpoints": 9}
        ended = run(command(ranks, data, **settings), time_limit=TIME_LIMIT)
        assert ended.code == 0, ended.output
        return folder

    return folder_of


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_trains_the_same_weights(
    trained: Callable[[int], Path], ranks: int
) -> None:
    one, several = trained(1), trained(ranks)
    losses = [[e["loss"] for e in events(f / "run", "step")] for f in (one, several)]
    assert len(losses[0]) >= 10
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    begin = values_of(finished(one / "checkpoints")[0])
    ends = [values_of(finished(folder / "checkpoints")[-1]) for folder in (one, several)]
    assert ends[0].keys() == ends[1].keys()
    for name, expected in ends[0].items():
        found = ends[1][name]
        if name.startswith("lifetime"):
            assert np.abs(found - expected).sum() <= 1e-3 * np.abs(expected).sum(), name
            continue
        # Of the way that the values went since the first checkpoint.
        way = np.linalg.norm(expected - begin[name]) + 1e-3 * np.linalg.norm(expected)
        assert np.linalg.norm(found - expected) <= 1e-3 * way, name


def test_each_timestamp_is_evaluated_before_it_is_trained_on(
    trained: Callable[[int], Path], data: Path, global_batch: int
) -> None:
    """The same figures on one rank and on two; events, table and plot are there."""
    stream = open_stream(data)
    for ranks in (1, 2):
        folder = trained(ranks) / "run"
        found = events(folder, "evaluation")
        assert [e["timestamp"] for e in found] == [1, 2, 3, 4]
        steps = [-(-len(stream.users(t, "train")) // global_batch) for t in range(4)]
        assert [e["step"] for e in found] == np.cumsum(steps).tolist()
        assert found[-1]["requests"] == stream.config.users
        for name in ("normalised_entropy", "auc", "gauc", "accuracy", "best_auc", "lifetime_auc"):
            expected = [e[name] for e in events(trained(1) / "run", "evaluation")]
            np.testing.assert_allclose([e[name] for e in found], expected, rtol=1e-3)
        assert all(e["best_normalised_entropy"] < e["normalised_entropy"] for e in found)
        assert (folder / "run.png").stat().st_size > 10_000
        assert "| all |" in (folder / "result.md").read_text()


def same_end(folder: Path, expected: Path) -> None:
    """The last checkpoint and the losses are an uninterrupted run's, bit for bit."""
    path, wanted = (finished(f / "checkpoints")[-1] for f in (folder, expected))
    assert step_of(path) == step_of(wanted)
    assert jobs.same(jobs.weights(path), jobs.weights(wanted))
    losses = {e["step"]: e["loss"] for e in events(expected / "run", "step")}
    for event in events(folder / "run", "step"):
        assert event["loss"] == losses[event["step"]]


@pytest.mark.slow
def test_a_killed_rank_changes_nothing(
    trained: Callable[[int], Path], data: Path, global_batch: int, tmp_path: Path
) -> None:
    """The launcher starts all ranks again, from the last checkpoint."""
    settings = {
        "global_batch_size": global_batch,
        "checkpoint_dir": tmp_path / "checkpoints",
        "run_dir": tmp_path / "run",
    }
    expected = trained(2)
    step = step_of(finished(expected / "checkpoints")[0]) + 2
    with Job(tmp_path / "output", command(2, data, **settings), PROGRAM) as job:
        job.wait_for_step(step)
        job.send(1, signal.SIGKILL)
        ended = job.end()
    assert ended.code == 0, ended.output
    assert "resumed from" in ended.output
    same_end(tmp_path, expected)


@pytest.mark.slow
def test_a_signal_stops_between_two_steps_and_nothing_is_lost(
    trained: Callable[[int], Path], data: Path, global_batch: int, tmp_path: Path
) -> None:
    """In the midst of a timestamp; two ranks go on bit for bit, one to rounding."""
    settings = {
        "global_batch_size": global_batch,
        "checkpoint_dir": tmp_path / "checkpoints",
        "run_dir": tmp_path / "run",
        "checkpoint_timestamps": 9,
    }
    expected = trained(2)
    step = step_of(finished(expected / "checkpoints")[0]) + 1
    # Under the launcher alone: python3 -m launch would start the job again at once.
    words = command(1, data, **settings)[1:]
    with Job(tmp_path / "output", jobs.on_ranks(2, sys.executable, *words), PROGRAM) as job:
        job.wait_for_step(step)
        job.send(1, signal.SIGTERM)
        ended = job.end()
    assert code_of_ranks(ended) == RESUMABLE, ended.output
    (saved,) = finished(tmp_path / "checkpoints")
    assert read_manifest(saved).position.next_sample > 0
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "alone" / "checkpoints")
    ended = run(command(2, data, **settings), time_limit=TIME_LIMIT)
    assert ended.code == 0, ended.output
    same_end(tmp_path, expected)

    settings["checkpoint_dir"] = tmp_path / "alone" / "checkpoints"
    ended = run(command(1, data, **settings), time_limit=TIME_LIMIT)
    assert ended.code == 0, ended.output
    ends = [values_of(finished(f / "checkpoints")[-1]) for f in (tmp_path / "alone", expected)]
    np.testing.assert_allclose(ends[0]["rows"], ends[1]["rows"], atol=1e-4)


def test_the_checkpoint_is_evaluated_on_the_timestamps_of_inference(
    trained: Callable[[int], Path], data: Path
) -> None:
    folder = trained(2)
    settings = {"mode": "test", "resume": folder / "checkpoints"}
    alone = run(command(1, data, **settings), time_limit=TIME_LIMIT)
    assert alone.code == 0, alone.output
    rows = [line.split(" | ") for line in alone.output.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| timestamp", "| :---:", "| 4", "| 5", "| all"]


def test_a_checkpoint_behind_the_last_timestamp_is_refused(
    trained: Callable[[int], Path], data: Path, global_batch: int
) -> None:
    settings = {"global_batch_size": global_batch, "last_timestamp": 0}
    words = command(1, data, checkpoint_dir=trained(2) / "checkpoints", **settings)
    ended = run(words, time_limit=TIME_LIMIT)
    assert ended.code not in (0, RESUMABLE), ended.output
    (line,) = errors(ended.output)
    assert "--last_timestamp=0: expected one that is not behind the checkpoint" in line


def spoiled(data: Path, folder: Path) -> Path:
    """A copy of the data in which an item does not exist."""
    shutil.copytree(data, folder)
    for path in sorted(folder.glob("shards/*/candidate_items.bin")):
        with open(path, "r+b") as file:
            file.write(np.int32(10**6).tobytes())
            file.seek(-4, os.SEEK_END)
            file.write(np.int32(10**6).tobytes())
    return folder


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param("no_data", "metadata.json", marks=pytest.mark.slow),
        ("item", "candidate_items.bin"),
        pytest.param("not_finite", "not finite", marks=pytest.mark.slow),
        pytest.param("flag", "expected --layers of above 0, found 0", marks=pytest.mark.slow),
    ],
)
def test_bad_input_ends_every_rank_with_one_line(
    data: Path, tmp_path: Path, fault: str, message: str
) -> None:
    settings: dict[str, Any] = {"max_history": 24}
    folder = data
    if fault == "no_data":
        folder = tmp_path / "nowhere"
    elif fault == "item":
        folder = spoiled(data, tmp_path / "data")
    elif fault == "not_finite":
        settings["dense_lr"] = 1e38
    else:
        settings["layers"] = 0
    ended: Ended = run(command(2, folder, **settings), time_limit=TIME_LIMIT)
    assert ended.code not in (0, RESUMABLE), ended.output
    lines = errors(ended.output)
    assert lines, ended.output
    assert any(message in line for line in lines), ended.output
    for rank in (0, 1):  # rank 0's lines come without a prefix
        ended_with = re.findall(rf"^(?:\[{rank}\]<stderr>:)?error: ", ended.output, re.MULTILINE)
        assert ended_with, ended.output
    assert "<stderr>:Traceback" not in ended.output
