"""Where the time of a step goes: each part's share, over steps and ranks, as a table.

Works on measured seconds and counted bytes; how they are measured is no concern of this module.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dlrm.formats.quantities import plural


@dataclass
class RankTimes:
    """What one rank measured.

    Attributes:
        plain: Seconds of each step that was timed as it is.
        parts: For each part, its seconds in each step that was taken in parts.
        sent: For each part that sends, the bytes that it sent in each of these steps.
        products: Seconds that the matrix products of a step take at the least; 0 if unknown.
    """

    plain: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    sent: dict[str, list[int]] = field(default_factory=dict)
    products: float = 0.0

    def add(self, parts: Mapping[str, float], sent: Mapping[str, int]) -> None:
        """Adds a step that was taken in parts.

        Args:
            parts: Seconds by part, the same parts in each step.
            sent: Bytes sent by part.
        """
        for name, seconds in parts.items():
            self.parts.setdefault(name, []).append(seconds)
        for name, count in sent.items():
            self.sent.setdefault(name, []).append(count)

    def to_text(self) -> str:
        """Returns all of it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> RankTimes:
        """Undoes `to_text`."""
        return cls(**json.loads(text))


class PartRow(NamedTuple):
    """One part over all steps and ranks.

    Attributes:
        part: Its name.
        mean: Seconds, on average.
        share: `mean` as a share of all parts'.
        median: Seconds.
        high: Seconds, of which 95 % are below.
        imbalance: The mean of the slowest rank over that of the fastest.
        sent: Bytes that a rank sends on average; None if the part sends nothing.
        rate: Bytes per second: what a rank sends, over the seconds of the rank that took least.
            The others wait for the last rank within the part, which is no transfer.
    """

    part: str
    mean: float
    share: float
    median: float
    high: float
    imbalance: float
    sent: float | None
    rate: float | None


class StepBreakdown:
    """The times of all ranks, which measured the same steps.

    Args:
        ranks: What each rank measured, in rank order.

    Attributes:
        ranks: As given.
        steps: Number of steps that were taken in parts.
    """

    def __init__(self, ranks: Sequence[RankTimes]) -> None:
        self.ranks = ranks
        self.steps = max((len(seconds) for seconds in ranks[0].parts.values()), default=0)

    @property
    def rows(self) -> list[PartRow]:
        """The parts in the order in which they were measured."""
        names = list(self.ranks[0].parts)
        total = sum(mean(self._of_all(name)) for name in names)
        return [self._row(name, total) for name in names]

    @property
    def plain(self) -> float:
        """Seconds of a step as it is: the median over steps and ranks; 0 if none was timed."""
        seconds = [value for rank in self.ranks for value in rank.plain]
        return statistics.median(seconds) if seconds else 0.0

    @property
    def products(self) -> float:
        """Seconds that the products of a step take at the least: the mean over ranks."""
        return mean([rank.products for rank in self.ranks])

    def table(self) -> str:
        """The table and what it is compared with, in Markdown."""
        rows = self.rows
        titles = ("part", "ms", "share", "p50", "p95", "slowest/fastest rank", "MB sent", "GB/s")
        cells = [_cells(row) for row in rows]
        total = sum(row.mean for row in rows)
        sent = sum(row.sent or 0 for row in rows)
        cells.append(
            ["all parts", f"{total * 1e3:.2f}", "100.0%", "", "", "", f"{sent / 1e6:.3f}", ""]
        )
        widths = [
            max(len(row[column]) for row in (titles, *cells)) for column in range(len(titles))
        ]
        lines = [_line(titles, widths), _line(["-" * width for width in widths], widths)]
        lines += [_line(row, widths) for row in cells]
        return "\n".join([self._title(), "", *lines, "", *self._comparison(total)])

    def _title(self) -> str:
        steps, ranks = plural(self.steps, "step"), plural(len(self.ranks), "rank")
        return f"Step breakdown: {steps} taken in parts, on {ranks}"

    def _comparison(self, total: float) -> list[str]:
        """What a step takes as it is, and what it would take at the least."""
        timed = sum(len(rank.plain) for rank in self.ranks)
        lines = []
        if self.plain:
            lines.append(
                f"A step as it is: {self.plain * 1e3:.2f} ms (median of {timed}); in parts, which "
                f"do not overlap: {total / self.plain:.2f} times that."
            )
        if self.plain and self.products:
            lines.append(
                f"Its matrix products alone, at the rate of large products here: "
                f"{self.products * 1e3:.2f} ms, {self.products / self.plain:.0%} of the step."
            )
        return lines

    def _of_all(self, name: str) -> list[float]:
        return [seconds for rank in self.ranks for seconds in rank.parts[name]]

    def _row(self, name: str, total: float) -> PartRow:
        seconds = sorted(self._of_all(name))
        means = [mean(rank.parts[name]) for rank in self.ranks]
        sent = rate = None
        if name in self.ranks[0].sent:
            sent = mean([count for rank in self.ranks for count in rank.sent[name]])
            least = [min(times) for times in zip(*(rank.parts[name] for rank in self.ranks))]
            rate = sent / mean(least) if sent else None
        return PartRow(
            name,
            mean(seconds),
            mean(seconds) / total if total else 0.0,
            statistics.median(seconds),
            seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
            max(means) / min(means) if min(means) else 1.0,
            sent,
            rate,
        )


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of none."""
    return sum(values) / len(values) if values else 0.0


def _cells(row: PartRow) -> list[str]:
    """The cells of a row; empty where it sends nothing."""
    return [
        row.part,
        f"{row.mean * 1e3:.2f}",
        f"{row.share:.1%}",
        f"{row.median * 1e3:.2f}",
        f"{row.high * 1e3:.2f}",
        f"{row.imbalance:.2f}",
        "" if row.sent is None else f"{row.sent / 1e6:.3f}",
        "" if row.rate is None else f"{row.rate / 1e9:.3f}",
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of the table; its first column is text, the others numbers."""
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths))
    )
    return f"| {' | '.join([first, *others])} |"
