"""What a reader of dllogger's files finds in ours, against numbers worked out by hand."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dlrm.reporting.dllogger_lines import DlloggerLines

SETTINGS = {"lr": 24.0, "bottom_mlp": (512, 256), "run_dir": None}


def read(path: Path) -> list[dict[str, Any]]:
    """As NVIDIA's scripts do: what follows "DLLL " is JSON; other lines are not theirs."""
    lines = path.read_text().splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("DLLL ")]


def step(loss: float) -> dict[str, object]:
    return {"loss": loss, "learning_rate": 0.5, "samples_per_second": 8000.0, "seconds": 2.0}


def evaluation(auc: float, log_loss: float) -> dict[str, object]:
    return {"auc": auc, "log_loss": log_loss, "samples": 300, "seconds": 0.5}


def tell(path: Path) -> None:
    """Two epochs of 10 steps; the first evaluation has the best AUC, the last the best loss."""
    lines = DlloggerLines(str(path), 10, pytest.fail)
    lines.start(0, {"ranks": 2}, SETTINGS)
    lines.record("step", 10, step(0.5))
    lines.record("evaluation_start", 10, {})
    lines.record("evaluation", 10, evaluation(0.8, 0.45))
    lines.record("step", 15, step(0.4))
    lines.record("evaluation", 15, evaluation(0.7, 0.44))
    lines.record("checkpoint", 20, {"seconds": 0.1})
    lines.record("result", 20, {"samples_per_second": 7000.0})
    lines.end(success=True)


def test_a_reader_finds_settings_steps_and_results(tmp_path: Path) -> None:
    before = time.time()
    tell(tmp_path / "log.json")
    lines = read(tmp_path / "log.json")
    metadata = [line for line in lines if line["type"] == "METADATA"]
    assert {line["metric"]: line["metadata"] for line in metadata} == {
        "best_auc": {"unit": None},
        "average_train_throughput": {"unit": "samples/s"},
        "average_test_throughput": {"unit": "samples/s"},
    }
    logs = [line for line in lines if line["type"] == "LOG"]
    assert [(line["step"], line["data"]) for line in logs] == [
        ("PARAMETER", {"lr": 24.0, "bottom_mlp": [512, 256], "run_dir": None}),
        ([0, 10], {"loss": 0.5, "lr": 0.5, "throughput": 8000.0}),
        ([0, 10], {"auc": 0.8, "validation_loss": 0.45}),
        ([1, 5], {"loss": 0.4, "lr": 0.5, "throughput": 8000.0}),
        ([1, 5], {"auc": 0.7, "validation_loss": 0.44}),
        (
            [],
            {
                "training_loss": 0.4,
                "best_auc": 0.8,
                "best_epoch": 1.0,
                "best_validation_loss": 0.44,
                "average_test_throughput": 600.0,
                "average_train_throughput": 7000.0,
            },
        ),
    ]
    for line in lines:
        assert before <= float(line["timestamp"]) <= time.time()
        moment = datetime.strptime(line["datetime"], "%Y-%m-%d %H:%M:%S.%f%z")
        assert moment.timestamp() == pytest.approx(float(line["timestamp"]), abs=1e-5)
        assert 0 <= float(line["elapsedtime"]) <= time.time() - before
    # The order of dllogger's own keys, which some readers take apart by hand.
    keys = ["timestamp", "datetime", "elapsedtime", "type", "step", "data"]
    assert list(logs[0]) == keys


def test_a_second_run_goes_on_behind_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('DLLL {"timestamp": "1')
    tell(path)
    tell(path)
    lines = path.read_text().splitlines()
    assert lines[0] == 'DLLL {"timestamp": "1'
    assert sum(json.loads(line[5:]).get("step") == [] for line in lines[1:]) == 2


def test_a_failed_run_has_no_results(tmp_path: Path) -> None:
    lines = DlloggerLines(str(tmp_path / "log.json"), 10, pytest.fail)
    lines.start(0, {}, SETTINGS)
    lines.record("step", 10, step(0.5))
    lines.record("error", 10, {"message": "rank 1 is lost"})
    lines.end(success=False)
    assert read(tmp_path / "log.json")[-1]["step"] == [0, 10]


def test_a_bad_path_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none" / "log.json"
    with pytest.raises(ValueError, match="expected a file") as raised:
        DlloggerLines(str(path), 10, pytest.fail)
    assert str(raised.value) == (
        f"expected a file that can be written in --log_path={path}, found: No such file or "
        "directory; make its folder, free space there or choose another --log_path"
    )


def test_a_full_disk_ends_the_log_and_not_the_run() -> None:
    said: list[str] = []
    lines = DlloggerLines("/dev/full", 10, said.append)
    lines.start(0, {}, SETTINGS)
    lines.record("step", 10, step(0.5))
    lines.end(success=True)
    assert said == [
        "warning: expected a file that can be written in --log_path=/dev/full, found: No space "
        "left on device; make its folder, free space there or choose another --log_path; the run "
        "goes on without this log"
    ]
