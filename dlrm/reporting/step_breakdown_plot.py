"""The plot of a step's breakdown: a bar of parts for each rank, beside a step as it is."""

from __future__ import annotations

from typing import Any

from dlrm.formats import atomic_files
from dlrm.reporting.step_breakdown import StepBreakdown

WIDTH_INCHES, DPI = 10.0, 120
MOST_BARS = 16  # ranks that are drawn; of more, the first ones

_GREY, _DARK = "#b5b5b5", "#555555"
# What computes, in order of appearance; what sends is drawn hatched in other colours.
_COMPUTES = ("#dddddd", "#8fb8de", "#3f7fbf", "#245a8d", "#6aa56a", "#35793a", "#7a5195")
_SENDS = ("#f6c667", "#ef9b46", "#e06b3c", "#c23b3b")


def plot_breakdown(path: str, breakdown: StepBreakdown) -> None:
    """Writes the plot; an earlier one is replaced only when this one is complete.

    Args:
        path: Path of the PNG file.
        breakdown: What to draw.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ranks = breakdown.ranks[:MOST_BARS]
    figure = Figure(
        figsize=(WIDTH_INCHES, 2.4 + 0.45 * len(ranks)),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [f"rank {number}" for number in range(len(ranks))]
    lefts = [0.0] * len(ranks)
    computes, sends = iter(_COMPUTES), iter(_SENDS)
    for row in breakdown.rows:
        widths = [1e3 * _mean(rank.parts[row.part]) for rank in ranks]
        sending = row.sent is not None
        axes.barh(
            names,
            widths,
            left=lefts,
            color=next(sends if sending else computes, _GREY),
            hatch="//" if sending else None,
            edgecolor="white",
            linewidth=0.5,
            label=f"{row.part}, {row.share:.0%}",
        )
        lefts = [left + width for left, width in zip(lefts, widths)]
    for name, seconds in (("as it is", breakdown.plain), ("products alone", breakdown.products)):
        if seconds:
            names.append(name)
            axes.barh([name], [1e3 * seconds], color=_GREY)
            axes.text(
                1e3 * seconds, len(names) - 1, f" {1e3 * seconds:.2f} ms", va="center", color=_DARK
            )
    _finish(axes, f"A step in parts, {breakdown.steps:,} measured")
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _finish(axes: Any, title: str) -> None:
    """Titles, axes and legend."""
    axes.set_title(title, fontsize=12, fontweight="bold")
    axes.set_xlabel("ms")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
