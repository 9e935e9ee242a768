"""What a run learns about its logs, and `records.json`, which says it.

Whichever engine learns it, the same logs give the same content. It must not know about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocess.options import Options
from preprocess.splits import TEST, TRAIN, VALIDATION


@dataclass
class LogStatistics:
    """What a run learns.

    Attributes:
        rows_by_file: Good rows of each file.
        positives: Rows with label 1.
        raised_dense: Dense values that were below the lowest one.
        missing: For each table, rows without a value.
        distinct: For each table, its distinct values.
        unknown: For each table, rows whose value has no id of its own.
        vocab_sizes: For each table, its rows.
        bad_rows: Rows left out.
        first_bad_rows: The first ten of them.
    """

    rows_by_file: list[int]
    positives: int = 0
    raised_dense: int = 0
    missing: list[int] = field(default_factory=list)
    distinct: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    vocab_sizes: list[int] = field(default_factory=list)
    bad_rows: int = 0
    first_bad_rows: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Good rows of all files."""
        return sum(self.rows_by_file)

    def check_rows(self, sources: Sequence[str]) -> None:
        """Refuse logs without rows.

        Raises:
            ValueError: Naming them.
        """
        if not self.rows:
            raise ValueError(
                f"{', '.join(sources)}: expected rows, found none; give a raw click log"
            )


def describe(
    files: Sequence[str], options: Options, statistics: LogStatistics, samples: Mapping[str, int]
) -> dict[str, Any]:
    """The content of `records.json`.

    Args:
        files: Names of the logs.
        options: What was asked for.
        statistics: What was learnt.
        samples: Rows of each split.
    """
    rules = options.rules
    return {
        "num_dense": options.num_dense,
        "vocab_sizes": statistics.vocab_sizes,
        "dense_log_offset": rules.dense_log_offset,
        "rules": rules.name,
        "train_samples": samples[TRAIN],
        "test_samples": samples[TEST],
        "validation_samples": samples.get(VALIDATION, 0),
        "frequency_threshold": rules.frequency_threshold,
        "max_table_rows": rules.max_table_rows,
        "split": options.split.by,
        "shuffle": options.shuffle,
        "files": list(files),
        "rows_by_file": statistics.rows_by_file,
        "positives": statistics.positives,
        "lowest_dense": rules.lowest_dense,
        "dense_values_raised": statistics.raised_dense,
        "distinct_values": statistics.distinct,
        "missing_categories": statistics.missing,
        "unknown_categories": statistics.unknown,
        "bad_rows": statistics.bad_rows,
        "first_bad_rows": statistics.first_bad_rows,
    }
