"""Writes the page: one HTML file with its pictures in it; no other file and no server is needed."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dlrm.metrics import Quality
from tools.report.figures import Bin, ValueGroup, calibration_error, grouped_auc
from tools.report.pictures import calibration_picture, groups_picture, importance_picture
from tools.report.scores import Importance

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em .8em;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


@dataclass(frozen=True)
class GroupSection:
    """The groups of a report.

    Attributes:
        column: The table whose ids are the groups.
        groups: All of them, the largest first.
        shown: Number of groups that are listed.
        least: Samples that a listed group has at least.
    """

    column: int
    groups: Sequence[ValueGroup]
    shown: int
    least: int


@dataclass(frozen=True)
class ImportanceSection:
    """The importance of the columns.

    Attributes:
        columns: All of them.
        samples: Number of samples that were used.
        repeats: Number of shuffles of each column.
        seed: Seed of the shuffles.
    """

    columns: Sequence[Importance]
    samples: int
    repeats: int
    seed: int


def render(
    title: str,
    facts: Sequence[tuple[str, str]],
    quality: Quality,
    bins: Sequence[Bin],
    importance: ImportanceSection,
    groups: GroupSection | None,
) -> str:
    """Returns the page.

    Args:
        title: Its heading.
        facts: Names and values of what was scored.
        quality: The figures of all samples.
        bins: The calibration.
        importance: The importance of the columns.
        groups: The groups, or None.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *_summary(facts, quality), *_calibration(bins)]
    parts += [*_importance(importance), *(_groups(groups, quality.auc) if groups else ())]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _summary(facts: Sequence[tuple[str, str]], quality: Quality) -> Iterator[str]:
    figures = (
        ("samples", f"{quality.samples:,}"),
        ("AUC, exact", _number(quality.auc)),
        ("log loss", _number(quality.log_loss)),
        ("normalised entropy", _number(quality.normalised_entropy)),
    )
    yield _table((), [*facts, *figures])


def _calibration(bins: Sequence[Bin]) -> Iterator[str]:
    yield "<h2>Calibration</h2>"
    yield (
        f"<p>{len(bins)} bins of equal size by prediction; equal predictions share a bin. "
        "Mean distance of prediction and share of label 1: "
        f"{_number(calibration_error(list(bins)))}.</p>"
    )
    yield _image(calibration_picture(bins), "calibration curve")
    lines = [(f"{b.samples:,}", _number(b.mean), _number(b.rate)) for b in bins]
    yield _table(("samples", "mean prediction", "share of label 1"), lines)


def _importance(section: ImportanceSection) -> Iterator[str]:
    yield "<h2>Importance of the columns</h2>"
    yield (
        f"<p>The AUC that is lost when a column's values are shuffled among {section.samples:,} "
        f"samples; mean and standard deviation of {section.repeats} shuffles, seed {section.seed}. "
        "Columns that say the same stand in for each other, and each then seems to give little.</p>"
    )
    yield _image(importance_picture(section.columns), "importance of each column")
    lines = [
        (column.name, _number(column.mean), _number(column.deviation))
        for column in sorted(section.columns, key=lambda column: -column.mean)
    ]
    yield _table(("column", "AUC lost", "deviation"), lines)


def _groups(section: GroupSection, whole: float) -> Iterator[str]:
    groups = list(section.groups)
    large = [group for group in groups if group.samples >= section.least]
    shown, hidden = large[: section.shown], large[section.shown :]
    small = groups[len(large) :]
    yield f"<h2>AUC by category {section.column}</h2>"
    yield (
        f"<p>{len(groups):,} values. Mean AUC within a value, by samples: "
        f"{_number(grouped_auc(groups))}; of all samples together: {_number(whole)}.</p>"
    )
    if any(math.isfinite(group.auc) for group in shown):
        yield _image(groups_picture(shown, whole), "AUC of each group")
    lines = [
        (
            str(group.value),
            f"{group.samples:,}",
            _number(group.positives / group.samples),
            _number(group.mean),
            _number(group.auc),
        )
        for group in shown
    ]
    yield _table(("value", "samples", "share of label 1", "mean prediction", "AUC"), lines)
    for word, rest in (
        (f"smaller than those above, of {section.least:,} samples or more", hidden),
        (f"of fewer than {section.least:,} samples, too few for an AUC of their own", small),
    ):
        if rest:
            least = rest[-1].samples
            yield (
                f"<p>Not listed: {len(rest):,} values {word}: "
                f"{sum(group.samples for group in rest):,} samples, the smallest of {least:,}.</p>"
            )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)] if head else []
    rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"


def _image(encoded: str, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{encoded}">'


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.6f}"
