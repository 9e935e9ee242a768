"""Which rows train, validate and test. It knows nothing of their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

TRAIN, VALIDATION, TEST = "train", "val", "test"


@dataclass(frozen=True)
class Part:
    """Consecutive rows [start, stop) of one split."""

    name: str
    start: int
    stop: int


def tail_rows(rows: int, fraction: float) -> int:
    """Rows in the last `fraction` of `rows`, rounded down from the fraction as it is written."""
    # Through the decimal text: 0.29 * 100 is 28.999... in binary floating point.
    return int(Fraction(str(fraction)) * rows)


def split_by_fraction(rows: int, validation_fraction: float, test_fraction: float) -> list[Part]:
    """Train first, then validation (if asked for), then test, all in the order of the rows.

    Raises:
        ValueError: if a fraction is out of range or no row is left for training.
    """
    for name, fraction in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"--{name}_fraction: expected a value in [0, 1), found {fraction}")
    test = tail_rows(rows, test_fraction)
    validation = tail_rows(rows, validation_fraction)
    train = rows - test - validation
    if train <= 0:
        raise ValueError(
            f"--split=fraction: expected rows left for training, found {rows} rows of which"
            f" {validation} validate and {test} test; lower the fractions"
        )
    parts = [Part(TRAIN, 0, train)]
    if validation_fraction > 0:
        parts.append(Part(VALIDATION, train, train + validation))
    return [*parts, Part(TEST, train + validation, rows)]


def split_terabyte(rows_by_file: Sequence[int]) -> list[Part]:
    """All files but the last train; of the last one ceil(n/2) rows test, the rest validate.

    Raises:
        ValueError: if there is one file only, or no row for training.
    """
    last = rows_by_file[-1]
    train = sum(rows_by_file[:-1])
    if train <= 0:
        raise ValueError(
            f"--split=terabyte: expected rows in files before the last one, found"
            f" {len(rows_by_file)} file(s) with {train} such rows; give several logs or"
            " --split=fraction"
        )
    test = train + (last + 1) // 2
    return [Part(TRAIN, 0, train), Part(TEST, train, test), Part(VALIDATION, test, train + last)]
