"""The plot of a training on a stream: NE and AUC over timestamps, beside the best that there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm.formats import atomic_files
from dlrm.reporting.plot import DPI, HEIGHT_INCHES, WIDTH_INCHES, History
from dlrm_v3.train.evaluation import StreamEvaluation

_BLUE, _GREEN, _GREY = "#2463a8", "#1d8156", "#666666"


def plot_stream(path: Path, history: History, evaluations: Sequence[StreamEvaluation]) -> None:
    """Writes the plot of a run; an earlier one is replaced only when this one is complete.

    Args:
        path: Path of the PNG file.
        history: The training lines.
        evaluations: The evaluations, in order of their timestamps.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    entropy, auc, loss = figure.subplots(3, 1, gridspec_kw={"height_ratios": [1.25, 1.25, 1.0]})
    figure.suptitle(
        "HSTU: each timestamp, predicted before it was trained on", fontsize=12, fontweight="bold"
    )
    _draw(entropy, evaluations, "normalised_entropy", "normalised entropy", _BLUE)
    _draw(auc, evaluations, "auc", "AUC", _GREEN)
    auc.set_xlabel("timestamp")
    loss.plot(history.steps, history.losses, color=_BLUE, linewidth=1.0)
    loss.set_ylabel("training loss")
    loss.set_xlabel("step")
    for axes in (entropy, auc, loss):
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.align_ylabels()
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(
    axes: Any, evaluations: Sequence[StreamEvaluation], name: str, title: str, color: str
) -> None:
    """Draws a figure of the model, with the best possible one dashed."""
    axes.set_ylabel(title)
    timestamps = [result.timestamp for result in evaluations]
    model = [getattr(result.window.model, name) for result in evaluations]
    best = [getattr(result.window.best, name) for result in evaluations]
    axes.plot(timestamps, model, color=color, linewidth=1.6, marker="o", markersize=4, label="HSTU")
    axes.plot(timestamps, best, color=_GREY, linestyle="--", linewidth=1.2, label="best possible")
    axes.legend(frameon=False, fontsize=9, loc="best")
