"""The files of a step's breakdown: its table, a plot, and all times."""

from __future__ import annotations

import dataclasses
import json
import os

from dlrm.formats import atomic_files
from dlrm.reporting.step_breakdown import StepBreakdown
from dlrm.reporting.step_breakdown_plot import plot_breakdown

FILE_NAMES = ("step_breakdown.md", "step_breakdown.json", "step_breakdown.png")


def write(folder: str, breakdown: StepBreakdown) -> None:
    """Writes table, plot and all times into a folder.

    Raises:
        OSError: A file could not be written.
    """
    os.makedirs(folder, exist_ok=True)
    table, times, plot = (os.path.join(folder, name) for name in FILE_NAMES)
    atomic_files.write_text(table, breakdown.table() + "\n")
    ranks = [dataclasses.asdict(rank) for rank in breakdown.ranks]
    atomic_files.write_text(times, json.dumps({"ranks": ranks}) + "\n")
    plot_breakdown(plot, breakdown)
