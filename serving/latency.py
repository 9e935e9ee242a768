"""Latencies of scorers and servers: percentiles, a table, JSON and a picture over batch sizes.

What a request is, and what answers it, is the caller's concern.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrm.formats import atomic_files
from dlrm.formats.file_names import StrPath

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
WARMUP = 10  # requests; a graph is compiled in the first ones
_TURN = 20  # requests of a variant before it is the next one's turn
WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 7.0, 120

_COLORS = ("#2463a8", "#c2571a", "#1d8156", "#7b3f98", "#8a6d00", "#666666")
_MARKERS = "osD^vP"
_GREY = "#666666"
_TAIL = 99.0  # the percentile that the picture shows beside the median


@dataclass(frozen=True)
class Latency:
    """The latencies of one variant at one batch size.

    Attributes:
        variant: What was measured, such as `scorer` or `SavedModel`.
        batch_size: Number of samples of a request.
        requests: Number of requests that were measured.
        mean: Mean seconds of a request.
        percentiles: Seconds that so many percent of the requests do not exceed, by percentile.
        samples_per_second: Throughput.
    """

    variant: str
    batch_size: int
    requests: int
    mean: float
    percentiles: Mapping[float, float]
    samples_per_second: float

    @classmethod
    def of(
        cls,
        variant: str,
        batch_size: int,
        seconds: ArrayLike,
        *,
        wall_seconds: float | None = None,
    ) -> Latency:
        """Summarises measurements.

        A percentile is one of the measured values (the nearest rank), so that of few requests the
        highest ones are all the slowest request.

        Args:
            variant: What was measured.
            batch_size: Number of samples of a request.
            seconds: The seconds of each request, [requests], at least one.
            wall_seconds: From the start of the first request to the end of the last, where several
                ran at a time; None if each began when the one before had ended.
        """
        values = np.sort(np.asarray(seconds, np.float64))
        assert values.size, "expected the seconds of at least one request"
        # Rounded, as 99.9 % of 1000 is a little above 999 in floating point.
        ranks = [math.ceil(round(p * values.size / 100, 6)) for p in PERCENTILES]
        elapsed = float(values.sum()) if wall_seconds is None else wall_seconds
        return cls(
            variant,
            batch_size,
            values.size,
            float(values.mean()),
            {p: float(values[rank - 1]) for p, rank in zip(PERCENTILES, ranks)},
            batch_size * values.size / elapsed,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; times in milliseconds."""
        return {
            "variant": self.variant,
            "batch_size": self.batch_size,
            "requests": self.requests,
            "mean_ms": 1e3 * self.mean,
            **{_name(p) + "_ms": 1e3 * value for p, value in self.percentiles.items()},
            "samples_per_second": self.samples_per_second,
        }


def measure_in_turn(
    variants: Mapping[str, Callable[[int], object]], requests: int, *, warmup: int = WARMUP
) -> dict[str, NDArray[np.float64]]:
    """Measures variants in turn, a few requests at a time, so that noise hits all alike.

    The first requests of a variant do not count, and neither does that with which it takes its
    turn: its threads then wake up, and those of the variant before fall asleep.

    Args:
        variants: Makes the request of a number, by the variant's name; it returns when it has the
            answer. All variants get the same numbers.
        requests: Number of requests to measure of each.
        warmup: Number of requests before the first that counts.

    Returns:
        The seconds of each request by the variant's name, float64 [requests].
    """
    seconds: dict[str, NDArray[np.float64]] = {name: np.empty(requests) for name in variants}
    for request in variants.values():
        for number in range(warmup):
            request(number)
    names = list(variants)
    for turn, first in enumerate(range(0, requests, _TURN)):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            request = variants[name]
            request(first)
            for number in range(first, min(first + _TURN, requests)):
                begin = time.perf_counter()
                request(number)
                seconds[name][number] = time.perf_counter() - begin
    return seconds


def latency_table(latencies: Iterable[Latency]) -> str:
    """Lays latencies out as a table for a terminal, a line each, without a final newline."""
    head = ["batch", "variant", "mean ms", *map(_name, PERCENTILES), "samples/s"]
    rows = [
        [
            f"{latency.batch_size:,}",
            latency.variant,
            *(
                _milliseconds(value)
                for value in (latency.mean, *(latency.percentiles[p] for p in PERCENTILES))
            ),
            f"{latency.samples_per_second:,.0f}",
        ]
        for latency in latencies
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return "\n".join(
        "  ".join(
            # The names of the variants are read from the left, numbers from the right.
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in [head, *rows]
    )


def plot_latency(path: StrPath, latencies: Sequence[Latency], title: str) -> None:
    """Draws latency and throughput over batch sizes, each on logarithmic axes.

    The line of a variant is its median, and the thin one above it its 99th percentile.

    Args:
        path: Path of the PNG file; an earlier one is replaced only when this one is complete.
        latencies: What to draw; the order of the variants is that of their first appearance.
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
    latency_axes, speed_axes = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [1.4, 1.0]}
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for number, variant in enumerate(dict.fromkeys(latency.variant for latency in latencies)):
        points = sorted(
            (latency for latency in latencies if latency.variant == variant),
            key=lambda latency: latency.batch_size,
        )
        sizes = [point.batch_size for point in points]
        style: dict[str, Any] = {
            "color": _COLORS[number % len(_COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 5,
        }
        medians, tails = (
            [1e3 * point.percentiles[p] for point in points] for p in (PERCENTILES[0], _TAIL)
        )
        latency_axes.plot(sizes, medians, linewidth=1.8, label=variant, **style)
        latency_axes.plot(sizes, tails, **{**style, "markersize": 3}, linewidth=0.9, linestyle="--")
        latency_axes.fill_between(sizes, medians, tails, color=style["color"], alpha=0.08)
        speed = [point.samples_per_second for point in points]
        speed_axes.plot(sizes, speed, linewidth=1.8, label=variant, **style)
    latency_axes.set_ylabel("latency of a request (ms)")
    latency_axes.set_title(
        f"line: median; dashed: {_name(_TAIL)}", loc="right", fontsize=9, color=_GREY, pad=4
    )
    latency_axes.legend(loc="upper left", frameon=False, fontsize=10)
    speed_axes.set_ylabel("samples/s")
    speed_axes.set_xlabel("batch size (samples of a request)")
    _log_axes(latency_axes, speed_axes, sorted({latency.batch_size for latency in latencies}))
    figure.align_ylabels()
    with atomic_files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _log_axes(latency_axes: Any, speed_axes: Any, sizes: Sequence[int]) -> None:
    """Makes the axes logarithmic, with numbers as people write them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for axes in (latency_axes, speed_axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axes.grid(True, which="minor", axis="y", color="#eeeeee", linewidth=0.5)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    speed_axes.xaxis.set_major_locator(FixedLocator(sizes))
    speed_axes.xaxis.set_minor_locator(NullLocator())
    speed_axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    latency_axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    speed_axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _name(percentile: float) -> str:
    return f"p{percentile:g}"


def _milliseconds(seconds: float) -> str:
    """Three digits of the time, or more where it takes more."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:,.1f}"
