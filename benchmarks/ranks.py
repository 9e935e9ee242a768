"""Starts a benchmark's ranks on this machine and collects what rank 0 measured."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

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


def compare_in_turn(
    rate: Callable[[str], float], standard: str, names: Sequence[str], rounds: int
) -> None:
    """Measures in turn, and prints a line for each round and the medians of the ratios.

    Each round begins and ends with the standard, and a rate is divided by the mean of these two: so
    all see the same machine.

    Args:
        rate: Measures what a name stands for, in samples/s.
        standard: The name to compare with.
        names: The other names.
        rounds: Number of rounds.
    """
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        before = rate(standard)
        rates = {name: rate(name) for name in names}
        after = rate(standard)
        for name, samples in rates.items():
            ratios[name].append(samples / statistics.mean([before, after]))
        each = "  ".join(f"{name} {samples:,.0f}" for name, samples in rates.items())
        print(f"  {standard} {before:,.0f}  {each}  {standard} {after:,.0f}", flush=True)
    for name, each_round in ratios.items():
        spread = f"({min(each_round):.2f} - {max(each_round):.2f})"
        print(f"  {name} / {standard}: median {statistics.median(each_round):.2f} {spread}")
