"""Starts a benchmark's ranks on this machine and collects what rank 0 measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

ROOT = Path(__file__).resolve().parents[1]
_MARK = "figures "


def report(figures: Any) -> None:
    """Prints the figures of rank 0, as JSON, for `measure`."""
    print(_MARK + json.dumps(figures), flush=True)


def measure(ranks: int, module: str, arguments: Sequence[str]) -> Any:
    """Runs a module on ranks that share this machine's cores.

    Args:
        ranks: The number of processes; one runs without Horovod's launcher.
        module: A module of this project, which calls `report` on rank 0.
        arguments: The module's command line.

    Returns:
        What `report` was given.

    Raises:
        ValueError: Horovod's launcher is not installed, or a rank failed; the message then ends
            with the last lines that it wrote.
    """
    command = ["./hvd_wrapper.sh", sys.executable, "-m", module, *arguments]
    if ranks > 1:
        command = [cli.find_horovodrun(), "--gloo", "-np", str(ranks), *command]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if _MARK in line]
    if done.returncode or not lines:
        raise ValueError(
            f"{' '.join(command)} ended with code {done.returncode}; its last lines are:\n"
            f"{done.stderr[-2000:]}"
        )
    return json.loads(lines[-1].split(_MARK, 1)[1])  # after the prefix that horovodrun adds
