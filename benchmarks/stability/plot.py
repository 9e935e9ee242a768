"""The picture of a stability study, as a PNG file: AUC over steps, and the last AUC of each seed.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Optional

from benchmarks.stability.runs import SeedRun
from benchmarks.stability.table import Column, columns
from dlrm.formats import atomic_files
from dlrm.reporting.plot import draw_level

COLOURS = {"float32": "#2463a8", "bfloat16": "#c2571a", "float16": "#1d8156"}
DPI = 120


def plot_stability(path: str, runs: Sequence[SeedRun], best: Optional[float]) -> None:
    """Draws the runs of a study.

    Args:
        path: Path of the PNG file.
        runs: The runs, by seed.
        best: The best possible AUC, drawn as a dashed line, if it is known.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11.0, 4.6), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    curves, ends = figure.subplots(1, 2, sharey=False)
    shown = columns(runs)
    for place, column in enumerate(shown):
        _draw_curves(curves, column)
        _draw_ends(ends, place, column)
    for axes in (curves, ends):
        if best is not None:
            draw_level(axes, best, f"best possible {best:.4f}")
        axes.margins(y=0.12)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_ylabel("AUC")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    curves.set_title("mean and range over seeds", fontsize=10)
    curves.set_xlabel("step")
    curves.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    curves.legend(frameon=False, fontsize=9, loc="lower right")
    ends.set_title("last evaluation: each seed, and the mean", fontsize=10)
    ends.set_xticks(range(len(shown)), [column.kind for column in shown])
    ends.set_xlim(-0.6, len(shown) - 0.4)
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_curves(axes: Any, column: Column) -> None:
    """Draws the mean over seeds at each evaluation, and the range as a band."""
    at_step: dict[int, list[float]] = {}
    for run in column.runs.values():
        for step, auc in zip(run.steps, run.aucs):
            at_step.setdefault(step, []).append(auc)
    steps = sorted(at_step)
    colour = COLOURS[column.kind]
    values = [at_step[step] for step in steps]
    axes.fill_between(
        steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2
    )
    means = [statistics.mean(v) for v in values]
    axes.plot(steps, means, color=colour, marker="o", markersize=3, label=column.kind)


def _draw_ends(axes: Any, place: int, column: Column) -> None:
    """Draws the last AUC of each run as a point, side by side in the order of the seeds."""
    aucs = [column.aucs[seed] for seed in sorted(column.aucs)]
    if not aucs:
        return
    middle = (len(aucs) - 1) / 2
    places = [place + 0.5 * (number - middle) / max(1, len(aucs)) for number in range(len(aucs))]
    axes.scatter(places, aucs, color=COLOURS[column.kind], s=22)
    axes.hlines(statistics.mean(aucs), place - 0.4, place + 0.4, color=COLOURS[column.kind])
