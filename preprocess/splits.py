"""Decides which rows are for training, validation and test.

This module must not know about engines or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dlrm.formats.zip_strict import zip_strict

TRAIN, VALIDATION, TEST = "train", "val", "test"
BY_COLUMN, BY_TIME = "column", "time"
NAMES = (TRAIN, VALIDATION, TEST)
"""The names of the splits; the tag of a row is an index into this tuple."""


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows [start, stop) that belong to one split."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class SplitRule:
    """How rows are divided into splits.

    Attributes:
        by: "fraction": the last rows are for test, those before them for validation. "terabyte":
            the first half of the last file is for test, its second half for validation. "file":
            the name of the file decides. "column": the text of the split field decides. "time":
            rows at and after a time are for test, those from an earlier one on for validation.
        test: The test rows: a fraction, or file names, or texts, or the time of the first one.
        validation: The validation rows, given in the same way.
    """

    by: str = "fraction"
    test: float | tuple[str, ...] = 0.1
    validation: float | tuple[str, ...] = 0.0

    def __post_init__(self) -> None:
        """Refuses rules that no log can satisfy, before any log is read.

        Raises:
            ValueError: A name is unknown or a fraction is out of range.
        """
        if self.by not in ("fraction", "terabyte", "file", BY_COLUMN, BY_TIME):
            raise ValueError(f"--split: expected fraction or terabyte, found {self.by!r}; give one")
        if self.by == "fraction":
            self.parts([10**12], [""])

    @property
    def by_row(self) -> bool:
        """Whether a field of each row decides its split, not its position."""
        return self.by in (BY_COLUMN, BY_TIME)

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return self.by == "terabyte" or bool(self.validation)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits in use, training first."""
        return (TRAIN, VALIDATION, TEST) if self.validates else (TRAIN, TEST)

    @property
    def tags(self) -> Mapping[str, int]:
        """The tag of each file name or text that is not for training."""
        assert isinstance(self.validation, tuple) or not self.validation
        assert isinstance(self.test, tuple)
        validation = self.validation or ()
        return {
            **{text: NAMES.index(VALIDATION) for text in validation},  # type: ignore[union-attr]
            **{text: NAMES.index(TEST) for text in self.test},
        }

    def parts(self, rows_by_file: Sequence[int], files: Sequence[str]) -> list[RowRange]:
        """Returns the row ranges of the splits, in order; a split may have several.

        Not if `by_row`, where the tag of each row decides.

        Raises:
            ValueError: No row is left for training, or a named file is absent.
        """
        if self.by == "terabyte":
            return split_terabyte(rows_by_file)
        if self.by == "file":
            return self._by_file(rows_by_file, files)
        assert isinstance(self.validation, float)
        assert isinstance(self.test, float)
        return split_by_fraction(sum(rows_by_file), self.validation, self.test)

    def _by_file(self, rows_by_file: Sequence[int], files: Sequence[str]) -> list[RowRange]:
        """Returns one range for each file."""
        tags = self.tags
        absent = set(tags) - set(files)
        if absent:
            raise ValueError(
                f"split: expected names among the files {', '.join(files)}, found"
                f" {', '.join(sorted(absent))}; correct the schema"
            )
        parts, start = [], 0
        for name, rows in zip_strict(files, rows_by_file):
            parts.append(RowRange(NAMES[tags.get(name, 0)], start, start + rows))
            start += rows
        return parts


def check_training(samples: Mapping[str, int], by: str) -> None:
    """Refuses a split without training rows.

    Raises:
        ValueError: There are no training rows; the message gives the rows of each split.
    """
    if not samples.get(TRAIN):
        found = ", ".join(f"{rows} {name}" for name, rows in samples.items())
        raise ValueError(
            f"split by {by}: expected rows left for training, found {found}; correct the split"
        )


def tail_rows(rows: int, fraction: float) -> int:
    """Returns `fraction` of `rows`, rounded down, with the fraction taken as written in decimal."""
    # By way of the decimal text: 0.29 * 100 is 28.999... in binary floating point.
    return int(Fraction(str(fraction)) * rows)


def split_by_fraction(
    rows: int, validation_fraction: float, test_fraction: float
) -> list[RowRange]:
    """Returns the ranges for training, validation (if asked for) and test, in this order.

    Raises:
        ValueError: A fraction is out of range or no row is left for training.
    """
    for name, fraction in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(
                f"--{name}_fraction: expected a value in [0, 1), found {fraction}; correct it"
            )
    test = tail_rows(rows, test_fraction)
    validation = tail_rows(rows, validation_fraction)
    train = rows - test - validation
    if train <= 0:
        raise ValueError(
            f"--split=fraction: expected rows left for training, found {rows} rows of which"
            f" {validation} are for validation and {test} for test; lower the fractions"
        )
    parts = [RowRange(TRAIN, 0, train)]
    if validation_fraction > 0:
        parts.append(RowRange(VALIDATION, train, train + validation))
    return [*parts, RowRange(TEST, train + validation, rows)]


def split_terabyte(rows_by_file: Sequence[int]) -> list[RowRange]:
    """Returns all files but the last for training, and the halves of the last for test, validation.

    With n rows in the last file, ceil(n / 2) are for test.

    Raises:
        ValueError: There is only one file, or no row for training.
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
    return [
        RowRange(TRAIN, 0, train),
        RowRange(TEST, train, test),
        RowRange(VALIDATION, test, train + last),
    ]
