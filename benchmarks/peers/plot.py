"""The picture of the comparison, as a PNG file; figures come from the caller.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.peers.summary import CaseResult
from dlrm.formats import atomic_files

OURS, PEER = "#2463a8", "#b9bec6"
DPI = 120


def plot_peers(path: str, results: Sequence[CaseResult]) -> None:
    """Draws each system's samples/s as a bar, a panel for each case, and the bound as a line.

    A whisker goes from the slowest turn to the fastest one; beside a peer's bar stands how many
    times as fast ours was, in turn.

    Args:
        path: Path of the PNG file.
        results: What was measured of each case.

    Raises:
        OSError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (9.0, 0.6 + sum(1.0 + 0.34 * len(result.turns()) for result in results))
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(results), 1, squeeze=False, height_ratios=[1 + len(r.turns()) for r in results]
    )
    for (axes,), result in zip(grid, results):
        ratios = {peer.title: statistics.median(peer.ratios) for peer in result.peers}
        for place, (title, turns) in enumerate(result.turns().items()):
            rates = [result.batch / turn.seconds for turn in turns]
            middle = statistics.median(rates)
            whisker = [[middle - min(rates)], [max(rates) - middle]]
            colour = PEER if title in ratios else OURS
            axes.barh(place, middle, xerr=whisker, color=colour, ecolor="#555555", capsize=2)
            note = f"  ours: {ratios[title]:.2f} times" if title in ratios else ""
            axes.annotate(
                f"{middle:,.0f}{note}",
                (max(rates), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        bound = result.batch / result.bound
        axes.axvline(bound, color="#666666", linestyle="--", linewidth=1, label="bound by products")
        axes.set_yticks(range(len(result.turns())), list(result.turns()), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(bound, axes.get_xlim()[1]))
        axes.set_title(f"{result.title}, batch {result.batch:,}", fontsize=10, loc="left")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    grid[-1][0].set_xlabel("training samples/s")
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
