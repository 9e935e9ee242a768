"""The plot of a run: loss, AUC and throughput over steps, as a PNG.

Where the points come from is the caller's concern. Matplotlib's Agg canvas is used directly instead
of pyplot, as it needs neither a display nor global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlrm.formats import atomic_files

WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 7.5, 120

_BLUE, _GREEN, _ORANGE, _GREY = "#2463a8", "#1d8156", "#c2571a", "#666666"
# Above this many points the raw curve is drawn faintly behind its running mean.
_SMOOTH_FROM = 40


@dataclass
class History:
    """What was measured during a run. The first three lists are of one length, and the last two.

    Attributes:
        steps: Number of steps done at each training line.
        losses: Mean loss at each training line.
        throughputs: Samples/s since the previous training line, without evaluations.
        evaluation_steps: Number of steps done at each evaluation.
        aucs: AUC of each evaluation.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    throughputs: list[float] = field(default_factory=list)
    evaluation_steps: list[int] = field(default_factory=list)
    aucs: list[float] = field(default_factory=list)


def plot_run(path: str, history: History, auc_target: float | None, title: str) -> None:
    """Writes the plot of a run; an earlier one is replaced only when this one is complete.

    Args:
        path: Path of the PNG file.
        history: The points to draw.
        auc_target: Drawn as a dashed line, if given.
        title: One line above the panels.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    loss_axes, auc_axes, speed_axes = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [1.25, 1.25, 1.0]}
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    _draw_loss(loss_axes, history)
    _draw_auc(auc_axes, history, auc_target)
    _draw_throughput(speed_axes, history)
    for axes in (loss_axes, auc_axes, speed_axes):
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    speed_axes.set_xlabel("step")
    speed_axes.xaxis.get_major_locator().set_params(integer=True)
    speed_axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    figure.align_ylabels()

    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_loss(axes: Any, history: History) -> None:
    """Draws the loss; many points are drawn faintly, with their running mean on top."""
    axes.set_ylabel("training loss")
    steps, losses = history.steps, history.losses
    if not steps:
        _say(axes, "no training line")
        return
    if len(steps) < _SMOOTH_FROM:
        axes.plot(steps, losses, color=_BLUE, linewidth=1.6, marker="o", markersize=3)
        return
    axes.plot(steps, losses, color=_BLUE, linewidth=0.7, alpha=0.35)
    # Odd, so that each mean is centred on its point.
    width = len(steps) // 50 * 2 + 3
    axes.plot(steps, _running_mean(losses, width), color=_BLUE, label=f"mean of {width} lines")
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_auc(axes: Any, history: History, auc_target: float | None) -> None:
    """Draws the AUC of each evaluation, and the target as a dashed line."""
    axes.set_ylabel("AUC")
    known = [
        (step, auc)
        for step, auc in zip(history.evaluation_steps, history.aucs)
        if math.isfinite(auc)
    ]
    if known:
        steps, aucs = zip(*known)
        axes.plot(steps, aucs, color=_GREEN, linewidth=1.6, marker="o", markersize=4)
        highest = max(known, key=lambda point: point[1])
        text = f"last {aucs[-1]:.4f}, highest {highest[1]:.4f} at step {highest[0]:,}"
        axes.set_title(text, loc="right", fontsize=9, color=_GREY, pad=4)
        # Room above the curve and the target line for the line's label.
        axes.margins(y=0.18)
    else:
        _say(axes, "no evaluation with both classes")
    if auc_target is not None:
        draw_level(axes, auc_target, f"target {auc_target:g}")


def _draw_throughput(axes: Any, history: History) -> None:
    """Draws the samples per second between training lines."""
    finite = [value for value in history.throughputs if math.isfinite(value)]
    scale, unit = (1e6, "M ") if finite and max(finite) >= 1e6 else (1e3, "thousand ")
    axes.set_ylabel(f"{unit}samples/s")
    if not finite:
        _say(axes, "no training line")
        return
    values = [value / scale for value in history.throughputs]
    few = len(values) < _SMOOTH_FROM
    axes.plot(
        history.steps, values, color=_ORANGE, linewidth=1.4, marker="o" if few else None,
        markersize=3,
    )  # fmt: skip
    # From zero, so that small fluctuations look small.
    axes.set_ylim(0, max(finite) / scale * 1.12)


def _running_mean(values: Sequence[float], width: int) -> Any:
    """Averages the `width` values around each, fewer at the ends; skips values not finite."""
    import numpy as np

    array = np.asarray(values, np.float64)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    middles = np.arange(len(array))
    starts = np.maximum(0, middles - width // 2)
    ends = np.minimum(len(array), middles + width // 2 + 1)
    count = counts[ends] - counts[starts]
    return np.where(count > 0, (sums[ends] - sums[starts]) / np.maximum(count, 1), np.nan)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def draw_level(axes: Any, value: float, label: str) -> None:
    """Draws a dashed line at a value of the vertical axis, with a label above it.

    Args:
        axes: Matplotlib's axes.
        value: The value.
        label: What it is.
    """
    axes.axhline(value, color=_GREY, linestyle="--", linewidth=1.2)
    axes.annotate(
        label,
        (0.005, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=_GREY,
        fontsize=9,
    )
