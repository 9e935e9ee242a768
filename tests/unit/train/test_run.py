"""What a run does around its training: go on from a checkpoint, evaluate one, end in good order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import open_data
from dlrm.checkpoint import directory as folder
from dlrm.checkpoint.manifest import DENSE_FILE, read_manifest
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.checkpoint.table_reader import TableReader
from dlrm.config import Config
from dlrm.train import run as program
from model import build_model
from tests.support.tiny_data import SETTINGS, write_random_split

STEPS = 12  # of an epoch: 96 samples in batches of 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_random_split(tmp_path / "data" / "train", 8 * STEPS + 5)
    write_random_split(tmp_path / "data" / "test", 30)
    return tmp_path / "data"


def config(data: Path, **settings: Any) -> Config:
    given = {**SETTINGS, "data_dir": os.fspath(data), "eval_in_last": False, "auc_target": 2.0}
    return Config.of(**{**given, "epochs": 2, "eval_interval": 5, "log_interval": 1, **settings})


def weights(directory: Path) -> list[np.ndarray]:
    """All weights of the newest checkpoint."""
    path = folder.finished(directory)[-1]
    manifest = read_manifest(path)
    with TableReader(path, manifest) as reader:
        table = reader.read_keys(0, reader.keys)
    with TensorReader(path / DENSE_FILE, manifest.files[DENSE_FILE]) as dense:
        return [table, *(dense.read(name) for name in dense.tensors)]


def evaluations(output: str) -> list[str]:
    """Where and with which figures each evaluation took place, without its duration."""
    return re.findall(r"Evaluate in (.*?), test time.*?(AUC.*)", output)


@pytest.mark.parametrize("stop", [1, 5, 11, 12, 13, 20])
def test_each_sample_is_seen_once_an_epoch(
    data: Path, tmp_path: Path, stop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after any step, also at the end of an epoch or before an evaluation."""
    assert program.run(config(data, checkpoint_dir=str(tmp_path / "whole")), open_data, build_model)
    whole = evaluations(capsys.readouterr().out)
    parts = str(tmp_path / "parts")
    assert program.run(config(data, checkpoint_dir=parts, early_stop=stop), open_data, build_model)
    before = capsys.readouterr().out
    assert folder.finished(Path(parts))[-1].name.endswith(str(stop))
    position = read_manifest(folder.finished(Path(parts))[-1]).position
    assert (position.epoch, position.next_sample) == (stop // STEPS, stop % STEPS * 8)
    assert program.run(config(data, checkpoint_dir=parts), open_data, build_model)
    after = capsys.readouterr().out
    assert f"{stop} steps done" in after
    steps = re.findall(r"^Iteration:(\d+)", before + after, re.MULTILINE)
    assert [int(step) for step in steps] == list(range(1, 2 * STEPS + 1))
    # An evaluation that is due where the run stopped is made again.
    once = evaluations(before)[:-1] if stop % 5 == 0 else evaluations(before)
    assert once + evaluations(after) == whole
    for value, expected in zip(weights(Path(parts)), weights(tmp_path / "whole")):
        np.testing.assert_array_equal(value, expected)


def test_so_many_evaluations_an_epoch(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """12 steps, 5 evaluations: every second step, also beyond the fifth."""
    assert program.run(config(data, evals_per_epoch=5, epochs=1), open_data, build_model)
    output = capsys.readouterr().out
    found = [found[0].partition("th iteration")[0] for found in evaluations(output)]
    assert found == ["2", "4", "6", "8", "10", "the end"]
    assert "every 2 steps" in output


def test_mlperfs_clock_starts_before_anything_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log as MLPerf's checker wants it, but for the AUC."""
    pytest.importorskip("mlperf_logging", reason="run `make operate-setup`")
    log = tmp_path / "log"
    read: list[str] = []

    def watched(name: str) -> None:
        original = getattr(os, name)

        def reading(*arguments: Any) -> Any:
            read.append("run_start" if '"run_start"' in log.read_text() else "nothing")
            return original(*arguments)

        monkeypatch.setattr(os, name, reading)

    watched("pread")  # the fingerprints
    watched("preadv")  # the samples
    settings = config(
        data,
        bottom_mlp=(4, 4, 4),
        top_mlp=(4, 4, 4, 4, 1),
        checkpoint_dir=str(tmp_path / "checkpoints"),
        mlperf_log=str(log),
        mlperf_division="closed",
    )
    assert program.run(settings.replace(early_stop=7), open_data, build_model)
    assert set(read) == {"run_start"}
    events = [json.loads(line.partition(" ")[2]) for line in log.read_text().splitlines()]
    values = {event["key"]: event["value"] for event in events}
    assert (values["train_samples"], values["eval_samples"]) == (8 * STEPS + 5, 30)
    assert (values["sgd_opt_base_learning_rate"], values["global_batch_size"]) == (0.1, 8)
    stop = next(event for event in events if event["key"] == "run_stop")
    assert stop["metadata"]["status"] == "aborted"


@pytest.mark.parametrize("stop", [5, 9, 12])
def test_a_shuffled_part_of_the_data_resumes_in_its_order(
    data: Path, tmp_path: Path, stop: int
) -> None:
    """9 of the 12 steps, in another order in each of the two epochs."""
    settings = config(data, shuffle_batch_order=True, dataset_subset=0.7)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert program.run(settings.replace(checkpoint_dir=str(whole)), open_data, build_model)
    stopped = settings.replace(checkpoint_dir=str(parts), early_stop=stop)
    assert program.run(stopped, open_data, build_model)
    position = read_manifest(folder.finished(parts)[-1]).position
    assert (position.epoch, position.next_sample) == (stop // 9, stop % 9 * 8)
    assert program.run(stopped.replace(early_stop=-1), open_data, build_model)
    assert read_manifest(folder.finished(parts)[-1]).position.step == 18
    for value, expected in zip(weights(parts), weights(whole)):
        np.testing.assert_array_equal(value, expected)

    in_order = config(data, dataset_subset=0.7, checkpoint_dir=str(tmp_path / "in_order"))
    assert program.run(in_order, open_data, build_model)
    assert any(
        (value != other).any()
        for value, other in zip(weights(whole), weights(tmp_path / "in_order"))
    )
    changed: dict[str, Any] = {"dataset_subset": 1.0, "shuffle_batch_order": False, "seed": 1}
    for flag, now in changed.items():
        with pytest.raises(ValueError, match=f"another run: {flag}: checkpoint .*, run {now}"):
            program.run(stopped.replace(**{flag: now}), open_data, build_model)


def test_evaluation_batches_of_their_own_size_give_the_same_figures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for number, size in enumerate((None, 3, 30, 64)):
        assert program.run(
            config(data, test_batch_size=size, run_dir=str(tmp_path / str(number))),
            open_data,
            build_model,
        )
        found.append(evaluations(capsys.readouterr().out))
    assert len(found[0]) == 4  # every 5 of the 24 steps
    assert found == [found[0]] * 4


def test_a_finished_run_stays_finished(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(data, checkpoint_dir=str(tmp_path / "a"), auc_target=-1.0)
    assert program.run(settings, open_data, build_model)
    assert "finished: AUC > -1.0" in capsys.readouterr().out
    before = [path.name for path in folder.finished(tmp_path / "a")]
    assert program.run(settings, open_data, build_model)
    output = capsys.readouterr().out
    assert "finished: AUC > -1.0" in output
    assert "Iteration" not in output
    assert [path.name for path in folder.finished(tmp_path / "a")] == before == ["step-0000000005"]


@pytest.mark.parametrize("only_test", [False, True])
def test_a_checkpoint_is_evaluated(
    data: Path, tmp_path: Path, only_test: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "a")
    assert program.run(
        config(data, checkpoint_dir=directory, eval_in_last=True), open_data, build_model
    )
    (trained,) = evaluations(capsys.readouterr().out)
    if only_test:
        shutil.rmtree(data / "train")
    # Another batch, as none of it is training.
    settings = config(data, mode="test", checkpoint_dir=directory, global_batch_size=6)
    log = tmp_path / "log.json"
    shown = {"run_dir": str(tmp_path / "run"), "metrics_port": 0, "log_path": str(log)}
    assert program.run(settings.replace(**shown), open_data, build_model)
    output = capsys.readouterr().out
    assert re.search(r"^metrics: http://.+:\d+/metrics$", output, re.MULTILINE)
    summary = json.loads(log.read_text().splitlines()[-1].removeprefix("DLLL "))
    assert summary["step"] == []
    (tested,) = evaluations(output)
    assert f"AUC: {summary['data']['best_auc']:.6f}" in tested[1]
    assert tested[1] == trained[1]
    for figure in ("AUC", "log loss", "NE"):
        assert figure in tested[1]
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    names = [json.loads(line)["event"] for line in events]
    assert names == ["start", "evaluation_start", "evaluation"]


def test_nothing_to_evaluate(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--mode=test: no checkpoint in .*; set --resume=PATH"):
        program.run(
            config(data, mode="test", checkpoint_dir=str(tmp_path / "a")), open_data, build_model
        )
    with pytest.raises(ValueError, match="--mode=test: no checkpoint named"):
        config(data, mode="test")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_a_step(
    data: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent by the third log line; the step after it is the last one."""
    from dlrm.reporting import Reporter

    log = Reporter.step

    def step(self: Reporter, done: int, *arguments: Any) -> None:
        log(self, done, *arguments)
        if done == 3:
            os.kill(os.getpid(), number)
            # The watchdog's thread hears it.
            for _ in range(1000):
                if program_watch and program_watch[0].signal:
                    return
                signal.sigtimedwait([], 0.01)

    program_watch: list[Any] = []

    class Kept(program.Watchdog):  # type: ignore[name-defined]
        def __enter__(self) -> Any:
            program_watch.append(self)
            return super().__enter__()

    monkeypatch.setattr(Reporter, "step", step)
    monkeypatch.setattr(program, "Watchdog", Kept)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert not program.run(config(data, checkpoint_dir=str(tmp_path / "a")), open_data, build_model)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert [path.name for path in folder.finished(tmp_path / "a")] == ["step-0000000004"]
    monkeypatch.undo()
    assert program.run(config(data, checkpoint_dir=str(tmp_path / "a")), open_data, build_model)
    assert program.run(config(data, checkpoint_dir=str(tmp_path / "whole")), open_data, build_model)
    for value, expected in zip(weights(tmp_path / "a"), weights(tmp_path / "whole")):
        np.testing.assert_array_equal(value, expected)
