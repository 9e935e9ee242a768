"""Statistics of the raw logs, and the description of a result, `records.json`, made from them.

The same logs give the same statistics whichever engine collects them. This module must not know
about engines or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocess.options import Options
from preprocess.rules import GENERIC
from preprocess.splits import TEST, TRAIN, VALIDATION


@dataclass
class LogStatistics:
    """Statistics of all logs of a run.

    Attributes:
        rows_by_file: Number of good rows of each file.
        positives: Number of rows with label 1.
        raised_dense: Number of dense values that were raised to the lowest one allowed.
        missing: Number of rows without a value, by table.
        distinct: Number of distinct values, by table.
        unknown: Number of rows whose value does not have its own id, by table; of tables with bags,
            the number of such ids.
        vocab_sizes: Number of rows of the embedding table, by table.
        bad_rows: Number of bad rows, which are skipped.
        first_bad_rows: Descriptions of the first ten bad rows.
        earlier_days: The days that the dictionary counted before, with `--append_day`.
        shortened_bags: Number of bags that had more than `max_ids` ids, by table with bags.
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
    earlier_days: list[dict[str, Any]] = field(default_factory=list)
    shortened_bags: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of good rows of all files."""
        return sum(self.rows_by_file)

    def check_rows(self, sources: Sequence[str]) -> None:
        """Refuses logs without good rows.

        Raises:
            ValueError: There are no good rows; the message names the logs.
        """
        if not self.rows:
            raise ValueError(
                f"{', '.join(sources)}: expected rows, found none; give a raw click log"
            )


def describe(
    files: Sequence[str], options: Options, statistics: LogStatistics, samples: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the content of `records.json`.

    Args:
        files: The names of the logs.
        options: The options of the run.
        statistics: The statistics of the logs.
        samples: The number of rows of each split, by name.
    """
    rules = options.rules
    # Of the other rules, the name says these.
    own: dict[str, Any] = {
        "missing_is_value": rules.missing_is_value,
        "moduli": [rules.modulus(table) for table in range(options.num_categorical)],
        "lowest_by_column": [rules.lowest(column) for column in range(options.num_dense)],
    }
    if options.schema.columns is not None:  # float32, whose rules the schema has for each column
        own["lowest_by_column"] = []
    if rules.hashed:
        own["hashed"] = list(rules.hashed)
    if options.bags:
        own["bags"] = [bag.to_json() for bag in options.bags]
        own["shortened_bags"] = statistics.shortened_bags
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
        "lowest_dense": rules.lowest_dense if options.schema.columns is None else None,
        "dense_values_raised": statistics.raised_dense,
        "distinct_values": statistics.distinct,
        "missing_categories": statistics.missing,
        "unknown_categories": statistics.unknown,
        "bad_rows": statistics.bad_rows,
        "first_bad_rows": statistics.first_bad_rows,
        **(own if rules.name == GENERIC else {}),
        **({"earlier_days": statistics.earlier_days} if options.append_day else {}),
    }
