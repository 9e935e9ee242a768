"""What a log says of its run, and the score of several: the time to train as MLPerf counts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm.reporting.mlperf_events import read_events

_MS_PER_MINUTE = 60_000


class RunResult(NamedTuple):
    """What a log says.

    Attributes:
        status: `success` or `aborted`.
        minutes: From run_start to run_stop.
        auc: The last AUC.
        epoch_num: When it was evaluated, in epochs, from 1 at the start.
    """

    status: str
    minutes: float
    auc: float
    epoch_num: float


def read_result(log: Path) -> RunResult:
    """Reads a log.

    Raises:
        ValueError: The run did not end, or was never evaluated.
    """
    events = {event["key"]: event for event in read_events(str(log))}
    missing = [key for key in ("run_start", "run_stop", "eval_accuracy") if key not in events]
    if missing:
        raise ValueError(f"{log}: expected the log of a finished run, found no {missing[0]} in it")
    start, stop, accuracy = (events[key] for key in ("run_start", "run_stop", "eval_accuracy"))
    return RunResult(
        stop["metadata"]["status"],
        (stop["time_ms"] - start["time_ms"]) / _MS_PER_MINUTE,
        accuracy["value"],
        accuracy["metadata"]["epoch_num"],
    )


def score(results: Sequence[RunResult], folder: Path) -> float:
    """Computes the minutes without the fastest and the slowest run, averaged.

    A run that missed the target counts as the slowest.

    Args:
        results: At least three.
        folder: That of the logs; MLPerf's checker leaves a `scaling.json` there if the runs
            converged in fewer epochs than the reference.

    Raises:
        ValueError: More than one run missed the target, or there are too few.
    """
    reached = sorted(result.minutes for result in results if result.status == "success")
    missed = len(results) - len(reached)
    if len(results) < 3 or missed > 1:
        raise ValueError(
            "the score: expected at least three runs, and all but one of them at the target, found "
            f"{len(reached)} of {len(results)}"
        )
    counted = reached[1:] if missed else reached[1:-1]
    scaling = folder / "scaling.json"
    factor = json.loads(scaling.read_text())["scaling_factor"] if scaling.exists() else 1.0
    return float(factor * sum(counted) / len(counted))
