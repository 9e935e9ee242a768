"""Which power law the columns of a raw log follow: where the exponents of the streams come from.

    python3 -m benchmarks.placement.fit LOG.tsv

The log is some thousand rows of Criteo Kaggle. For each column the exponent is found under which a
table of its published size shows as many distinct values as the column does. What was not fitted
is printed beside it: the distinct values in the first half of the rows, and the share of the ten
most frequent values, each as found and under the law.
"""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.placement.streams import PowerLaw
    from benchmarks.shapes import KAGGLE_VOCAB_SIZES

FIRST_COLUMN = 14  # after the label and 13 integers
STEEPEST = 4.0
HALVINGS = 30
TOP = 10  # most frequent values that are looked at
PIECE = 1 << 20  # probabilities that are held at a time


def expected_distinct(law: PowerLaw, draws: int) -> float:
    """The expected number of distinct ids among independent draws."""
    total = 0.0
    for first in range(0, law.rows, PIECE):
        chances = law.probabilities(first, min(first + PIECE, law.rows))
        total += float(-np.expm1(draws * np.log1p(-np.minimum(chances, 1 - 1e-12))).sum())
    return total


def fitted(rows: int, draws: int, distinct: int) -> PowerLaw:
    """The law with that many distinct ids among the draws, or the nearest from 0 to `STEEPEST`.

    Args:
        rows: Number of rows of the table.
        draws: Number of draws.
        distinct: Number of distinct ids among them.
    """
    low, high = 0.0, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # The steeper, the fewer.
        if expected_distinct(PowerLaw(rows, middle), draws) > distinct:
            low = middle
        else:
            high = middle
    return PowerLaw(rows, high)


def describe(rows: int, values: Sequence[str]) -> str:
    """A line about one column."""
    draws, half = len(values), len(values) // 2
    law = fitted(rows, draws, len(set(values)))
    top = sum(number for _, number in collections.Counter(values).most_common(TOP)) / draws
    of_law = law.probabilities(0, min(TOP, rows)).sum()
    return (
        f"{rows:>10,} {len(set(values)):>9,} {law.exponent:>9.3f} {len(set(values[:half])):>8,} "
        f"{expected_distinct(law, half):>8,.0f} {top:>8.3f} {of_law:>8.3f}"
    )


def main() -> int:
    """Prints a line for each column; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("log", type=Path, help="raw log in Criteo's format")
    log = parser.parse_args().log
    rows = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    expected = FIRST_COLUMN + len(KAGGLE_VOCAB_SIZES)
    if not rows or len(rows[0]) != expected:
        found = len(rows[0]) if rows else 0
        raise ValueError(f"{log}: expected {expected} columns, found {found}; pass a raw log")
    print(f"{len(rows):,} rows; half: their first half; top: share of the ten most frequent")
    titles = ("distinct", "exponent", "half", "law", "top", "law")
    widths = (9, 9, 8, 8, 8, 8)
    print(f"{'table':>10} " + " ".join(f"{t:>{w}}" for t, w in zip(titles, widths)))
    for table, size in enumerate(KAGGLE_VOCAB_SIZES):
        print(describe(size, [row[FIRST_COLUMN + table] for row in rows]), flush=True)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
