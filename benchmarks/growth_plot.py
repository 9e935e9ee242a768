"""The picture of how a step's time grows, as a PNG file; figures come from the caller.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm.formats import atomic_files

COLOURS = ("#2463a8", "#c2571a", "#999999")
DPI = 120


class GrowthPanel(NamedTuple):
    """What was measured while one size grew.

    Attributes:
        name: The size that grew.
        sizes: Its values.
        wall: Seconds of a step, for each of them.
        processor: Seconds of the processor for a step, for each of them.
        of_wall: The exponent of `wall`.
        of_processor: The exponent of `processor`.
        of_work: The exponents of the counted work, by its kind.
    """

    name: str
    sizes: Sequence[float]
    wall: Sequence[float]
    processor: Sequence[float]
    of_wall: float
    of_processor: float
    of_work: Mapping[str, float]


def plot_growth(path: str, panels: Sequence[GrowthPanel]) -> None:
    """Draws a panel for each size, with its exponents; dashed is the work, from the first point on.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (3.6 * len(panels), 4.0)
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        kind, steepest = max(panel.of_work.items(), key=lambda item: item[1])
        lines = (
            (panel.wall, f"wall, exponent {panel.of_wall:.2f}", "-"),
            (panel.processor, f"processor, {panel.of_processor:.2f}", "-"),
            (
                [panel.wall[0] * (size / panel.sizes[0]) ** steepest for size in panel.sizes],
                f"{kind}, {steepest:.2f}",
                "--",
            ),
        )
        for colour, (seconds, label, style) in zip(COLOURS, lines):
            axes.plot(
                panel.sizes,
                [value * 1e3 for value in seconds],
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
        axes.set_title(f"ms of a step over {panel.name}", fontsize=10)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
