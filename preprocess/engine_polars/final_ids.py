"""From the provisional ids of a table to the final ones, between the two passes.

This module must not know about files or text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.dictionary_files import TableIds
from preprocess.engine_polars.dictionary import Dictionary
from preprocess.options import Options
from preprocess.rules import ranked


def assigned_ids(
    options: Options, table: int, old: TableIds | None, dictionary: Dictionary
) -> tuple[TableIds, NDArray[np.int32]]:
    """Makes a table's dictionary, and the final id of each provisional id.

    Args:
        options: The options of the run.
        table: The index of the table.
        old: The dictionary of an earlier result whose ids are used; None makes new ids.
        dictionary: The values of the logs, by provisional id.

    Returns:
        The dictionary, and int32 [values + 1]. Values without their own id have -1, as has the last
        entry, which is for missing values.
    """
    if old is None:
        return _new_ids(options, table, dictionary)
    if options.append_day:
        return _grown_ids(options, table, old, dictionary)
    return old, _old_ids(old, dictionary)


def _new_ids(
    options: Options, table: int, dictionary: Dictionary
) -> tuple[TableIds, NDArray[np.int32]]:
    """Makes a new dictionary; see `assigned_ids`."""
    values, counts = dictionary.values, dictionary.counts
    kept = ranked(options.rules, table, values, counts)
    first = options.rules.first_id(table)
    final = np.full(len(values) + 1, -1, "<i4")
    final[kept] = np.arange(first, first + len(kept), dtype=np.int32)
    return TableIds(values[kept], counts[kept], first, first + len(kept)), final


def _old_ids(ids: TableIds, dictionary: Dictionary) -> NDArray[np.int32]:
    """Returns the id that an earlier dictionary has for each provisional id; see `assigned_ids`."""
    order = np.argsort(ids.values)
    ascending = ids.values[order]
    values = dictionary.values
    final = np.full(len(values) + 1, -1, "<i4")
    if len(ascending):
        found = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
        known = np.flatnonzero(ascending[found] == values)
        final[known] = ids.first_id + order[found[known]]
    return final


def _grown_ids(
    options: Options, table: int, old: TableIds, dictionary: Dictionary
) -> tuple[TableIds, NDArray[np.int32]]:
    """Appends the new values to an earlier dictionary and adds up the counts."""
    final = _old_ids(old, dictionary)
    values, counts, totals = dictionary.values, dictionary.counts, old.counts.copy()
    known, fresh = (np.flatnonzero(part) for part in (final[:-1] >= 0, final[:-1] < 0))
    totals[final[known] - old.first_id] += counts[known]
    kept = fresh[ranked(options.rules, table, values[fresh], counts[fresh])]
    size = old.vocab_size + len(kept)
    final[kept] = np.arange(old.vocab_size, size, dtype=np.int32)
    return (
        TableIds(
            np.concatenate([old.values, values[kept]]),
            np.concatenate([totals, counts[kept]]),
            old.first_id if len(old.values) else options.rules.first_id(table),
            size,
        ),
        final,
    )
