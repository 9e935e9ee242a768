"""The picture of the placement study, as a PNG file; figures come from the caller.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlrm.formats import atomic_files

COLOURS = ("#2463a8", "#1d8156", "#c2571a")
DPI = 120
PANELS = (
    ("megabytes_over_mean", "bytes sent: greatest over mean"),
    ("megabytes", "MB sent by the busiest rank"),
    ("samples_per_second", "samples/s, model of A100"),
)


def plot_placement(path: str, results: Sequence[Any]) -> None:
    """Draws balance, bytes and modelled speed over the number of ranks.

    Args:
        path: Path of the PNG file.
        results: Named tuples with the fields of `PANELS`, and scaling, ranks, placement, compress.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    scalings = list(dict.fromkeys(load.scaling for load in results))
    size = (12.0, 3.8 * len(scalings))
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(scalings), len(PANELS), squeeze=False, sharex=True)
    for row, scaling in zip(grid, scalings):
        chosen = [load for load in results if load.scaling == scaling]
        for axes, (field, title) in zip(row, PANELS):
            _draw(axes, chosen, field)
            axes.set_title(f"{scaling} scaling: {title}", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("ranks")
    grid[0][0].legend(frameon=False, fontsize=8)
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Any, results: Sequence[Any], field: str) -> None:
    """Draws a line for each placement, dashed for those with `--compress`."""
    names = list(dict.fromkeys(load.placement for load in results))
    for colour, name in zip(COLOURS, names):
        for compress, style in ((False, "-"), (True, "--")):
            line = [x for x in results if x.placement == name and x.compress == compress]
            axes.plot(
                [load.ranks for load in line],
                [getattr(load, field) for load in line],
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                label=name + (", compress" if compress else ""),
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda ranks, _: f"{ranks:,.0f}")
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
