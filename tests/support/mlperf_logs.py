"""MLPerf logs of runs that never took place, written by the recorder, and faults put into them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrm.optim.schedule import Schedule
from dlrm.reporting.mlperf_events import MlperfEvents
from dlrm.reporting.mlperf_log import MlperfLog, MlperfRun

TARGET = 0.8025
SETTINGS: dict[str, Any] = {
    "auc_target": TARGET,
    "checkpoint_dir": None,
    "mlperf_org": "An organisation",
    "mlperf_division": "closed",
    "mlperf_status": "onprem",
    "mlperf_platform": "two cores",
    "seed": 5,
    "global_batch_size": 2048,
    "bottom_mlp": (512, 256, 128),
    "top_mlp": (1024, 1024, 512, 256, 1),
    "epochs": 2,
}
RUN = MlperfRun(1_000_003, 4_000, 18, Schedule(24.0, 2, 30, 9), 0.0)
TOKEN = ":::MLLOG "

Events = list[dict[str, Any]]


def opened(path: Path, warn: Callable[[str], None] = pytest.fail) -> MlperfLog:
    """The recorder of a process that began a minute ago."""
    return MlperfLog(os.fspath(path), RUN._replace(begin=time.time() - 60), warn)


def evaluate(log: MlperfLog, step: int, auc: float) -> None:
    """Records an evaluation."""
    log.record("evaluation_start", step, {})
    log.record("evaluation", step, {"auc": auc}, {"auc": auc})


def write_log(path: Path, *aucs: float, **settings: Any) -> None:
    """Writes the log of a run that evaluates every 9 of 36 steps."""
    MlperfEvents(os.fspath(path)).event("cache_clear", True)
    log = opened(path)
    log.start(0, {"ranks": 2}, {**SETTINGS, **settings})
    for number, auc in enumerate(aucs, 1):
        evaluate(log, 9 * number, auc)
    log.record("result", 9 * len(aucs), {"reason": "2 epochs"})
    log.end(success=True)


def read_log(path: Path) -> Events:
    """The events of a log; each line must be one."""
    texts = path.read_text().splitlines()
    assert all(text.startswith(TOKEN) for text in texts)
    return [json.loads(text[len(TOKEN) :]) for text in texts]


def change_log(path: Path, change: Callable[[Events], Events]) -> None:
    """Writes a log again, changed."""
    events = change(read_log(path))
    path.write_text("".join(f"{TOKEN}{json.dumps(event)}\n" for event in events))
