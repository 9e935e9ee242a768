"""Which rows train, validate and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dlrm.formats.zip_strict import zip_strict

TRAIN, VALIDATION, TEST = "train", "val", "test"
NAMES = (TRAIN, VALIDATION, TEST)
"""A row's tag is an index into this."""


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows [start, stop) of one split."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class SplitRule:
    """How rows are dealt to the splits.

    Attributes:
        by: "fraction": the last rows test, those before them validate; "terabyte": the last
            file's first half tests, its second half validates; "file": by the file's name;
            "column": by the text of the split field.
        test: What tests: a fraction, or names or texts.
        validation: The same for validation.
    """

    by: str = "fraction"
    test: float | tuple[str, ...] = 0.1
    validation: float | tuple[str, ...] = 0.0

    def __post_init__(self) -> None:
        """Refuse what no log can satisfy, before it is read.

        Raises:
            ValueError: Naming what was expected and found.
        """
        if self.by not in ("fraction", "terabyte", "file", "column"):
            raise ValueError(f"--split: expected fraction or terabyte, found {self.by!r}")
        if self.by == "fraction":
            self.parts([10**12], [""])

    @property
    def validates(self) -> bool:
        """Whether there are rows for validation."""
        return self.by == "terabyte" or bool(self.validation)

    @property
    def names(self) -> tuple[str, ...]:
        """The splits there are, train first."""
        return (TRAIN, VALIDATION, TEST) if self.validates else (TRAIN, TEST)

    @property
    def tags(self) -> Mapping[str, int]:
        """For "column": the tag of each text that does not train."""
        assert isinstance(self.validation, tuple) or not self.validation
        assert isinstance(self.test, tuple)
        validation = self.validation or ()
        return {
            **{text: NAMES.index(VALIDATION) for text in validation},  # type: ignore[union-attr]
            **{text: NAMES.index(TEST) for text in self.test},
        }

    def parts(self, rows_by_file: Sequence[int], files: Sequence[str]) -> list[RowRange]:
        """The splits in the order of their rows; one may come in several parts. Not for "column".

        Raises:
            ValueError: No row is left for training, or a file is named that there is not.
        """
        if self.by == "terabyte":
            return split_terabyte(rows_by_file)
        if self.by == "file":
            return self._by_file(rows_by_file, files)
        assert isinstance(self.validation, float)
        assert isinstance(self.test, float)
        return split_by_fraction(sum(rows_by_file), self.validation, self.test)

    def _by_file(self, rows_by_file: Sequence[int], files: Sequence[str]) -> list[RowRange]:
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
    """Refuse a split that leaves nothing to train on.

    Raises:
        ValueError: Naming the rows there are.
    """
    if not samples.get(TRAIN):
        found = ", ".join(f"{rows} {name}" for name, rows in samples.items())
        raise ValueError(f"split by {by}: expected rows left for training, found {found}")


def tail_rows(rows: int, fraction: float) -> int:
    """Rows in the last `fraction` of `rows`, rounded down from the fraction as it is written."""
    # Through the decimal text: 0.29 * 100 is 28.999... in binary floating point.
    return int(Fraction(str(fraction)) * rows)


def split_by_fraction(
    rows: int, validation_fraction: float, test_fraction: float
) -> list[RowRange]:
    """Train first, then validation (if asked for), then test, all in the order of the rows.

    Raises:
        ValueError: A fraction is out of range or no row is left for training.
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
    parts = [RowRange(TRAIN, 0, train)]
    if validation_fraction > 0:
        parts.append(RowRange(VALIDATION, train, train + validation))
    return [*parts, RowRange(TEST, train + validation, rows)]


def split_terabyte(rows_by_file: Sequence[int]) -> list[RowRange]:
    """All files but the last train; of the last one ceil(n/2) rows test, the rest validate.

    Raises:
        ValueError: There is one file only, or no row for training.
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
