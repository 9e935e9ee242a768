"""The definitions of the preprocessing rules, by name.

Any engine that follows these definitions writes the same ids. This module must not know about
files or text.

Common to all rules: A missing dense value is 0. A categorical field is its hexadecimal number,
taken modulo `max_table_rows` if that is given. Counts and dictionaries cover all good rows,
whichever split they belong to. The number of a row is its position among the good rows of all
files in order; skipped bad rows have no number. The first appearance of a value is the lowest
number of a row that has it.

`mlperf`, `dlrm`: Dense values below 0 become 0. A missing category is the same as the value 0. Ids
    follow the order of first appearance. With a threshold T > 0, values seen fewer than T times
    share id 0 and the others get ids from 1. Training takes ln(x + 1).
`spark`: Dense values below -1 become -1, so that ln(x + 2) is finite. Id 0 is always reserved for
    values seen fewer than T times and for missing ones; the other values get ids from 1 in order
    of count (descending) and value (ascending). A missing category is not a value: it is never
    counted and always gets id 0. NVIDIA's DeepLearningExamples do the same: their Spark script
    drops nulls before it counts and fills unmatched rows with 0 after its join. It leaves the order
    of equal counts to Spark's sort; here it is defined.
`generic`: The user's schema makes each of these choices, with a threshold and a modulus for each
    table and a lowest value for each dense column. Tables with `ids: hash` have no dictionary.

With the dictionary of an earlier run its ids are used as they are, and a value that it lacks gets
id 0. Where no threshold reserves id 0, that is also the id of the first value.

Training rows may be shuffled: they are then sorted by `shuffle_key`, which maps row numbers one to
one, so that the order depends on the seed and the row numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import splitmix64


@dataclass(frozen=True)
class Rules:
    """One way to turn raw fields into a record.

    Attributes:
        name: The name that the user gives.
        dense_log_offset: Training takes ln(x + dense_log_offset) of dense values.
        lowest_dense: The lowest dense value; smaller ones are raised to it.
        missing_is_value: Whether a missing category counts as the value 0; otherwise it gets id 0.
        special_id: Whether id 0 is reserved even without a threshold.
        by_count: Whether ids are in order of count and value; otherwise of first appearance.
        frequency_threshold: Values seen fewer times share id 0; 0 and 1 have no effect.
        max_table_rows: The modulus of categorical numbers; None leaves them as they are.
        lowest_by_column: Values that replace `lowest_dense`, by index of the dense column.
        thresholds: Values that replace `frequency_threshold`, by index of the table.
        moduli: Values that replace `max_table_rows`, by index of the table.
        hashed: The tables without a dictionary: an id is the number of a field modulo the table's
            modulus, and a missing value has id 0.
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
    hashed: tuple[int, ...] = ()

    def lowest(self, column: int) -> int:
        """Returns the lowest value of a dense column."""
        return (self.lowest_by_column or {}).get(column, self.lowest_dense)

    def threshold(self, table: int) -> int:
        """Returns the count below which values of a table share id 0."""
        return (self.thresholds or {}).get(table, self.frequency_threshold)

    def modulus(self, table: int) -> int | None:
        """Returns the modulus of a table's numbers, or None if they are left as they are."""
        return (self.moduli or {}).get(table, self.max_table_rows)

    def first_id(self, table: int) -> int:
        """Returns the first id that belongs to a single value: 1 where id 0 is reserved."""
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
    """Returns the rules of a name, with their defaults unless numbers are given.

    Raises:
        ValueError: The name is unknown or a number is out of range.
    """
    if name not in _RULES:
        raise ValueError(f"--rules: expected one of {', '.join(_RULES)}, found {name!r}")
    return with_numbers(_RULES[name], frequency_threshold, max_table_rows)


def with_numbers(
    rules: Rules, frequency_threshold: int | None, max_table_rows: int | None
) -> Rules:
    """Returns the rules with the given numbers instead of their own.

    Raises:
        ValueError: A number is out of range.
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
    """Selects the values that get their own id, in order of these ids.

    Args:
        rules: The threshold and the order of the ids.
        table: The index of the table.
        values: The distinct values in order of first appearance, uint32 [values].
        counts: The number of rows with each value, int64 [values].

    Returns:
        Indices into `values`: the first gets id `rules.first_id(table)`, the next one more.
    """
    kept = np.flatnonzero(counts >= rules.threshold(table))
    if rules.by_count:
        kept = kept[np.lexsort((values[kept], -counts[kept]))]
    return kept


def shuffle_seed(seed: int) -> int:
    """Returns the number that is added to each row's multiple of SplitMix64's gamma.

    It is mixed, so that neighbouring seeds give unrelated orders.
    """
    word = np.array([seed], np.int64).view(np.uint64) + np.uint64(1)
    word *= np.uint64(splitmix64.GAMMA)
    splitmix64.mix(word)
    return int(word[0])


def shuffle_key(seed: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the keys by which shuffled rows are sorted, uint64 [rows]; no two are equal.

    Args:
        seed: The seed, any 64-bit number.
        rows: The row numbers, uint64 [rows].
    """
    keys = rows * np.uint64(splitmix64.GAMMA) + np.uint64(shuffle_seed(seed))
    splitmix64.mix(keys)
    return keys
