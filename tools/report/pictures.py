"""The pictures of a report, as PNG in base64 for a page without other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from tools.report.figures import Bin, ValueGroup
from tools.report.scores import Importance

_BLUE, _ORANGE, _GREY = "#2463a8", "#c2571a", "#888888"
_WIDTH_INCHES, _DPI = 8.0, 110
_ROW_INCHES = 0.22


def calibration_picture(bins: Sequence[Bin]) -> str:
    """The share of clicks over the predicted probability, beside the line of a perfect model."""
    figure = _figure(4.2)
    axes = figure.subplots()
    means, rates = [part.mean for part in bins], [part.rate for part in bins]
    end = max(*means, *rates)
    axes.plot([0, end], [0, end], "--", color=_GREY, linewidth=1, label="perfect")
    axes.plot(means, rates, "o-", color=_BLUE, markersize=4, label="model")
    axes.set_xlabel("mean prediction of a bin")
    axes.set_ylabel("share of label 1")
    axes.legend(frameon=False)
    return _encoded(figure)


def importance_picture(columns: Sequence[Importance]) -> str:
    """A bar for each column, the most important one on top."""
    figure = _figure(1.0 + _ROW_INCHES * len(columns))
    axes = figure.subplots()
    ordered = sorted(columns, key=lambda column: column.mean)
    colours = [_ORANGE if column.name.startswith("dense") else _BLUE for column in ordered]
    axes.barh(
        [column.name for column in ordered],
        [column.mean for column in ordered],
        xerr=[column.deviation for column in ordered],
        color=colours,
        error_kw={"elinewidth": 0.8, "ecolor": _GREY},
    )
    axes.set_xlabel("AUC lost when the column is shuffled")
    axes.margins(y=0.01)
    return _encoded(figure)


def groups_picture(groups: Sequence[ValueGroup], whole: float) -> str:
    """The AUC of each group beside that of all samples."""
    figure = _figure(1.0 + _ROW_INCHES * len(groups))
    axes = figure.subplots()
    ordered = list(groups)[::-1]
    names = [f"{group.value} ({group.samples:,})" for group in ordered]
    axes.plot([group.auc for group in ordered], names, "o", color=_BLUE, markersize=5)
    axes.axvline(whole, color=_GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("AUC of a group; dashed: of all samples")
    return _encoded(figure)


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (_WIDTH_INCHES, height)
    figure = Figure(figsize=size, dpi=_DPI, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    return figure


def _encoded(figure: Any) -> str:
    for axes in figure.axes:
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()
