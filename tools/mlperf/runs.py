"""Runs of one training with different seeds, each after a cleared page cache and with its own log.

A run that is done is not repeated, so that an interrupted series goes on where it was.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm.formats.quantities import plural
from dlrm.reporting.mlperf_events import read_events
from launch.command_line import flag_value
from tools.mlperf import page_cache

SEEDS = 1 << 31  # a positive int32, which every generator takes


def run_all(folder: Path, count: int, ranks: int, command: Sequence[str]) -> list[Path]:
    """Trains so often.

    Args:
        folder: Folder for the logs, created if missing.
        count: Number of runs.
        ranks: Number of ranks of each.
        command: `main.py` and its flags.

    Returns:
        The logs.

    Raises:
        ValueError: The command fits no series of runs, or a run failed.
    """
    for flag in ("seed", "mlperf_log", "checkpoint_dir"):
        if flag_value(command[1:], flag) is not None:
            raise ValueError(
                f"expected no --{flag} among the flags: each run has another seed and log, and "
                "none goes on from the one before it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"result_{number}.txt" for number in range(count)]
    for log in logs:
        if any(event["key"] == "run_stop" for event in read_events(str(log))):
            print(f"{log}: done before, and kept", flush=True)
            continue
        log.unlink(missing_ok=True)
        try:
            page_cache.clear(str(log))
        except ValueError as error:
            print(f"warning: {error}; the checker will miss cache_clear", flush=True)
        seed = secrets.randbelow(SEEDS)
        print(f"{log}: {plural(ranks, 'rank')}, seed {seed}", flush=True)
        job = [*command, f"--seed={seed}", f"--mlperf_log={log}"]
        done = subprocess.run([sys.executable, "-m", "launch", "-np", str(ranks), "--", *job])
        if done.returncode:
            raise ValueError(
                f"{log}: the run ended with code {done.returncode}; see its lines above, then "
                "repeat the command: finished runs are kept"
            )
    return logs
