"""The picture of days that are appended, as a PNG file; figures come from the caller.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm.formats import atomic_files

DPI = 120


def plot_days(
    path: str,
    best: Sequence[float],
    auc: Mapping[str, Sequence[float]],
    rows: Mapping[str, Sequence[int]],
) -> None:
    """Draws the AUC on the next day and the rows of the tables, a line for each way to train.

    Args:
        path: The file.
        best: The best possible AUC on the day after each day.
        auc: The AUC on it, by way.
        rows: The rows of all tables after each day, by way.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    days = range(1, 1 + len(best))
    left.plot(days, best, "--", color="#999999", label="best possible")
    for axes, lines in ((left, auc), (right, rows)):
        for way, values in lines.items():
            axes.plot(days, values, "o-", label=way)
        axes.set_xlabel("days trained on")
        axes.grid(alpha=0.3)
    left.set_title("AUC on the next day")
    right.set_title("rows of the tables")
    left.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
