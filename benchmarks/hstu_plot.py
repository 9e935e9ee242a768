"""The pictures of the two studies of HSTU, as PNG files; figures come from the caller.

Matplotlib's Agg canvas is used directly instead of pyplot, as in `dlrm.reporting.plot`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.hstu_cases import HstuCase
from dlrm.formats import atomic_files

COLOURS = ("#2463a8", "#c2571a", "#1d8156", "#8a4fa3", "#b8860b", "#666666")
DPI = 120


class Measured(NamedTuple):
    """What was measured of a case.

    Attributes:
        case: The case.
        seconds: Of one pass, for each contender and round.
        peaks: Bytes that each contender held at most, beyond what it held before the case.
        product: Operations a second of a large product in the same rounds.
    """

    case: HstuCase
    seconds: dict[str, list[float]]
    peaks: dict[str, int]
    product: float


def plot_speed(path: str, results: Sequence[Measured]) -> None:
    """Draws tokens a second and memory over length: a column for each kind and depth.

    Raises:
        OSError: The file could not be written.
    """
    columns: dict[tuple[str, int], list[Measured]] = {}
    for found in results:
        columns.setdefault((found.case.kind, found.case.layers), []).append(found)
    figure, grid = _figure(2, len(columns), 3.2 * len(columns) + 1.5, 6.0)
    figure.suptitle("HSTU's layers, ours and plain PyTorch", fontsize=12, fontweight="bold")
    for column, ((kind, layers), found_all) in enumerate(columns.items()):
        speed, memory = grid[0][column], grid[1][column]
        lengths = [found.case.longest for found in found_all]
        for colour, name in zip(COLOURS, found_all[0].seconds):
            rates = [f.case.tokens / statistics.median(f.seconds[name]) for f in found_all]
            peaks = [f.peaks[name] / 2**20 for f in found_all]
            style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.6}
            speed.plot(lengths, rates, label=name, **style)
            memory.plot(lengths, peaks, label=name, **style)
        bound = [f.product * f.case.tokens / f.case.operations() for f in found_all]
        speed.plot(lengths, bound, color=COLOURS[-1], linestyle="--", label="bound")
        speed.set_title(f"{kind}, {layers} layer{'s' * (layers > 1)}", fontsize=10)
        memory.set_xlabel("longest history")
        for axes in (speed, memory):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    grid[0][0].set_ylabel("tokens/s")
    grid[1][0].set_ylabel("memory, MiB")
    grid[0][0].legend(frameon=False, fontsize=8)
    _write(figure, path)


def plot_learning(
    path: str,
    timestamps: Sequence[int],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
) -> None:
    """Draws NE and AUC over timestamps.

    Args:
        path: Path of the PNG file.
        timestamps: The timestamps that were predicted.
        curves: For each predictor its NE and AUC at each timestamp; the last is the best possible.
        title: One line above the panels.

    Raises:
        OSError: The file could not be written.
    """
    figure, grid = _figure(2, 1, 9.0, 7.0)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for place, label in enumerate(("normalised entropy", "AUC")):
        axes = grid[place][0]
        axes.set_ylabel(label)
        for number, (name, values) in enumerate(curves.items()):
            best = number == len(curves) - 1
            axes.plot(
                timestamps,
                [value[place] for value in values],
                label=name,
                color=COLOURS[-1] if best else COLOURS[number % (len(COLOURS) - 1)],
                linestyle="--" if best else "-",
                linewidth=2.2 if number == 0 else 1.4,
                marker="o",
                markersize=3,
            )
    grid[1][0].legend(frameon=False, fontsize=9, ncols=2, loc="center right")
    grid[1][0].set_xlabel("timestamp")
    grid[1][0].xaxis.get_major_locator().set_params(integer=True)
    _write(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex="col", squeeze=False)
    for axes in grid.flat:
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, grid


def _write(figure: Any, path: str) -> None:
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
