"""What the three public preprocessing rules mean, in one place and by name.

It knows nothing of files or text; any engine that follows these definitions writes the same ids.

Common to all: a missing dense value is 0; a categorical field is its hexadecimal number, taken
modulo `max_table_rows` when that is given; counts and dictionaries cover all rows, whichever
split they end in.

`mlperf`, `dlrm`: dense values below 0 become 0; a missing category is the value 0 and nothing
    else; ids follow the order of first appearance. With a threshold T > 0 the values seen fewer
    than T times share id 0 and the others follow from 1. The training side takes ln(x + 1).
`spark`: dense values below -1 become -1, so that ln(x + 2) is finite; id 0 is always reserved,
    for values seen fewer than T times and for missing ones; the other values get ids from 1 by
    count (descending) and then value (ascending). A missing category is not a value: it is never
    counted and is always id 0, however frequent. NVIDIA's DeepLearningExamples do the same: their
    Spark script drops nulls before it counts and fills unmatched rows with 0 after its join. It
    leaves ties to Spark's sort; here they are defined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rules:
    """One way to turn raw fields into a record.

    Attributes:
        name: what the user calls it.
        dense_log_offset: the training side applies ln(x + offset).
        lowest_dense: smaller dense values are raised to this one.
        missing_is_value: a missing category counts as the value 0; otherwise it is id 0.
        special_id: id 0 is reserved even when no threshold is given.
        by_count: ids in order of count and value; otherwise of first appearance.
        frequency_threshold: values seen fewer times share id 0; 0 and 1 drop none.
        max_table_rows: categorical numbers are taken modulo this; None leaves them.
    """

    name: str
    dense_log_offset: float
    lowest_dense: int
    missing_is_value: bool
    special_id: bool
    by_count: bool
    frequency_threshold: int = 0
    max_table_rows: int | None = None

    @property
    def reserves_special(self) -> bool:
        """Whether id 0 stands for no value of its own."""
        return self.special_id or self.frequency_threshold > 0


_RULES = {
    rules.name: rules
    for rules in (
        Rules("mlperf", 1.0, 0, True, False, False, max_table_rows=40_000_000),
        Rules("dlrm", 1.0, 0, True, False, False),
        Rules("spark", 2.0, -1, False, True, True, frequency_threshold=15),
    )
}

RULE_NAMES = tuple(_RULES)


def rules_by_name(
    name: str, frequency_threshold: int | None = None, max_table_rows: int | None = None
) -> Rules:
    """The rules called `name`, with their defaults unless numbers are given.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    if name not in _RULES:
        raise ValueError(f"--rules: expected one of {', '.join(_RULES)}, found {name!r}")
    rules = _RULES[name]
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


@dataclass(frozen=True)
class FinalIds:
    """How one table's provisional ids become final.

    Attributes:
        by_provisional: final id of each provisional id, int32 [values + 1]; the last entry is
            the missing value's, so that provisional id -1 finds it.
        vocab_size: rows of the table, one more than the largest id that may occur.
        unchanged: every provisional id is already final.
    """

    by_provisional: NDArray[np.int32]
    vocab_size: int
    unchanged: bool


def final_ids(rules: Rules, values: NDArray[np.uint32], counts: NDArray[np.int64]) -> FinalIds:
    """Final ids of a table.

    Args:
        rules: which values keep an id, and in which order.
        values: distinct values in order of first appearance [values].
        counts: how often each was seen [values].
    """
    kept = np.flatnonzero(counts >= rules.frequency_threshold)
    if rules.by_count:
        kept = kept[np.lexsort((values[kept], -counts[kept]))]
    first = 1 if rules.reserves_special else 0
    by_provisional = np.zeros(len(values) + 1, np.int32)
    by_provisional[kept] = np.arange(first, first + len(kept), dtype=np.int32)
    unchanged = first == 0 and not rules.by_count
    return FinalIds(by_provisional, len(kept) + first, unchanged)
