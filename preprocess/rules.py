"""What the preprocessing rules mean, in one place and by name.

It must not know about files or text; any engine that follows these definitions writes the same ids.

Common to all: a missing dense value is 0; a categorical field is its hexadecimal number, taken
modulo `max_table_rows` when that is given; counts and dictionaries cover all good rows, whichever
part they end in. A row's number is its position among the good rows of all files in order; bad
rows that are left out have no number. A value's first appearance is the least number of a row that
holds it.

`mlperf`, `dlrm`: dense values below 0 become 0; a missing category is the value 0 and nothing
    else; ids follow the order of first appearance. With a threshold T > 0 the values seen fewer
    than T times share id 0 and the others follow from 1. The training side takes ln(x + 1).
`spark`: dense values below -1 become -1, so that ln(x + 2) is finite; id 0 is always reserved,
    for values seen fewer than T times and for missing ones; the other values get ids from 1 by
    count (descending) and then value (ascending). A missing category is not a value: it is never
    counted and is always id 0, however frequent. NVIDIA's DeepLearningExamples do the same: their
    Spark script drops nulls before it counts and fills unmatched rows with 0 after its join. It
    leaves ties to Spark's sort; here they are defined.
`generic`: each of these choices as the user's schema says, with a threshold and a modulus for each
    table and a lowest value for each dense column.

With a dictionary of an earlier run its ids are taken as they are, and a value that it lacks gets
id 0. Where no threshold reserves id 0, that is also the id of the first value.

Rows that train may be shuffled: they then stand in the order of `shuffle_key`, which is one to one
in the row number, so that seed and row number alone decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MIX_STEP = 0x9E3779B97F4A7C15
MIX_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""SplitMix64 (Steele, Lea, Flood 2014): z ^= z >> shift, z *= factor, for each round in turn."""


@dataclass(frozen=True)
class Rules:
    """One way to turn raw fields into a record.

    Attributes:
        name: What the user calls it.
        dense_log_offset: The training side applies ln(x + offset).
        lowest_dense: Smaller dense values are raised to this one.
        missing_is_value: A missing category counts as the value 0; otherwise it is id 0.
        special_id: Id 0 is reserved even when no threshold is given.
        by_count: Ids in order of count and value; otherwise of first appearance.
        frequency_threshold: Values seen fewer times share id 0; 0 and 1 drop none.
        max_table_rows: Categorical numbers are taken modulo this; None leaves them.
        lowest_by_column: Instead of `lowest_dense` for some dense columns, by index.
        thresholds: Instead of `frequency_threshold` for some tables, by index.
        moduli: Instead of `max_table_rows` for some tables, by index.
    """

    name: str
    dense_log_offset: float
    lowest_dense: int
    missing_is_value: bool
    special_id: bool
    by_count: bool
    frequency_threshold: int = 0
    max_table_rows: int | None = None
    lowest_by_column: Mapping[int, int] | None = None
    thresholds: Mapping[int, int] | None = None
    moduli: Mapping[int, int] | None = None

    def lowest(self, column: int) -> int:
        """The least value of a dense column."""
        return (self.lowest_by_column or {}).get(column, self.lowest_dense)

    def threshold(self, table: int) -> int:
        """Values of the table seen fewer times than this share id 0."""
        return (self.thresholds or {}).get(table, self.frequency_threshold)

    def modulus(self, table: int) -> int | None:
        """Numbers of the table are taken modulo this."""
        return (self.moduli or {}).get(table, self.max_table_rows)

    def first_id(self, table: int) -> int:
        """The first id that stands for one value: 1 where id 0 is reserved."""
        return int(self.special_id or self.threshold(table) > 0)


_RULES = {
    rules.name: rules
    for rules in (
        Rules("mlperf", 1.0, 0, True, False, False, max_table_rows=40_000_000),
        Rules("dlrm", 1.0, 0, True, False, False),
        Rules("spark", 2.0, -1, False, True, True, frequency_threshold=15),
    )
}

GENERIC = "generic"
NAMED_RULES = tuple(_RULES)
RULE_NAMES = (*NAMED_RULES, GENERIC)


def rules_by_name(
    name: str, frequency_threshold: int | None = None, max_table_rows: int | None = None
) -> Rules:
    """The rules called `name`, with their defaults unless numbers are given.

    Raises:
        ValueError: For an unknown name or a number out of range.
    """
    if name not in _RULES:
        raise ValueError(f"--rules: expected one of {', '.join(_RULES)}, found {name!r}")
    return with_numbers(_RULES[name], frequency_threshold, max_table_rows)


def with_numbers(
    rules: Rules, frequency_threshold: int | None, max_table_rows: int | None
) -> Rules:
    """The rules with other numbers where some are given.

    Raises:
        ValueError: For a number out of range.
    """
    if frequency_threshold is not None:
        if frequency_threshold < 0:
            raise ValueError(
                f"--frequency_threshold: expected 0 or more, found {frequency_threshold}"
            )
        rules = replace(rules, frequency_threshold=frequency_threshold)
    if max_table_rows is not None:
        if not 1 <= max_table_rows < 2**31:
            raise ValueError(f"--max_table_rows: expected 1 to {2**31 - 1}, found {max_table_rows}")
        rules = replace(rules, max_table_rows=max_table_rows)
    return rules


def ranked(
    rules: Rules, table: int, values: NDArray[np.uint32], counts: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Which values get an id of their own, in the order of these ids.

    Args:
        rules: Which values keep an id, and in which order.
        table: Index of the table.
        values: Distinct values in order of first appearance [values].
        counts: How often each was seen [values].

    Returns:
        Indices into `values`; the first has id `rules.first_id(table)`, and so on.
    """
    kept = np.flatnonzero(counts >= rules.threshold(table))
    if rules.by_count:
        kept = kept[np.lexsort((values[kept], -counts[kept]))]
    return kept


def shuffle_seed(seed: int) -> int:
    """What is added to every row's multiple of `MIX_STEP`: seeds that are near lie apart."""
    word = np.array([seed], np.int64).view(np.uint64) + np.uint64(1)
    return int(_mixed(word * np.uint64(MIX_STEP))[0])


def shuffle_key(seed: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where rows stand among the shuffled: ascending, as unsigned numbers; no two are equal.

    Args:
        seed: Any 64-bit number.
        rows: Row numbers [rows].
    """
    return _mixed(rows * np.uint64(MIX_STEP) + np.uint64(shuffle_seed(seed)))


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in MIX_ROUNDS:
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return words
