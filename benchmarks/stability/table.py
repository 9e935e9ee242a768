"""The table of a stability study: AUC by seed and type, and how far seeds and types are apart.

Figures alone; how the runs were made is no concern of this module.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Optional

from benchmarks.stability.runs import SeedRun

NONE = "-"
REFERENCE = "float32"


class Column:
    """The runs of one type.

    Args:
        runs: All runs of a study.
        kind: The type.

    Attributes:
        kind: The type.
        runs: Its runs by seed.
        aucs: AUC of the last evaluation by seed, without runs that diverged.
    """

    def __init__(self, runs: Iterable[SeedRun], kind: str) -> None:
        self.kind = kind
        self.runs = {run.seed: run for run in runs if run.type == kind}
        self.aucs = {seed: run.auc for seed, run in self.runs.items() if run.auc is not None}

    def auc_text(self, seed: int) -> str:
        """The AUC of one seed; "diverged" if training did, and a dash if there is no such run."""
        if seed in self.aucs:
            return f"{self.aucs[seed]:.6f}"
        return "diverged" if seed in self.runs else NONE

    def differences(self, other: Column) -> list[float]:
        """AUC minus that of the other type, for each seed that both trained with."""
        return [auc - other.aucs[seed] for seed, auc in self.aucs.items() if seed in other.aucs]


def columns(runs: Sequence[SeedRun]) -> list[Column]:
    """The columns of a study, in the order in which the types first appear."""
    return [Column(runs, kind) for kind in dict.fromkeys(run.type for run in runs)]


def mean_and_error(values: Sequence[float]) -> Optional[tuple[float, float]]:
    """The mean of a sample and its standard error; None for fewer than two values."""
    if len(values) < 2:
        return None
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def table(runs: Sequence[SeedRun], target: float) -> list[list[str]]:
    """The rows of the table; the first is its heading.

    Args:
        runs: The runs of a study, by seed.
        target: The AUC for which the last row says after how many steps the runs were above it.
    """
    shown = columns(runs)
    rows = [["seed", *(column.kind for column in shown)]]
    for seed in dict.fromkeys(run.seed for run in runs):
        rows.append([str(seed), *(column.auc_text(seed) for column in shown)])
    for name, of in (("mean", statistics.mean), ("smallest", min), ("greatest", max)):
        values = [list(column.aucs.values()) for column in shown]
        rows.append([name, *(f"{of(aucs):.6f}" if aucs else NONE for aucs in values)])
    found = [mean_and_error(list(column.aucs.values())) for column in shown]
    deviations = [
        f"{statistics.stdev(column.aucs.values()):.6f}" if error else NONE
        for column, error in zip(shown, found)
    ]
    rows.append(["standard deviation", *deviations])
    for reference in (column for column in shown if column.kind == REFERENCE):
        changes = [mean_and_error(column.differences(reference)) for column in shown]
        texts = [f"{found[0]:+.6f} ± {found[1]:.6f}" if found else NONE for found in changes]
        texts[shown.index(reference)] = NONE
        rows.append([f"difference from {REFERENCE}", *texts])
    rows.append([f"steps until above {target:g}", *(_steps(column, target) for column in shown)])
    return rows


def _steps(column: Column, target: float) -> str:
    """The range of steps until the target, and how many runs did not reach it."""
    reached = [run.steps_until(target) for run in column.runs.values()]
    known = [steps for steps in reached if steps is not None]
    missed = len(reached) - len(known)
    text = f"{min(known):,} - {max(known):,}" if known else "never"
    return f"{text}, {missed} never" if known and missed else text


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
