"""Days whose logs a result's dictionary has counted, as `records.json` lists them.

A day is recognised by what the first pass counted in it, so that it is known under other names of
its files too, and by either engine. This module must not know about files or engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm.formats.json_files import sum_of_json
from preprocess.log_statistics import LogStatistics
from preprocess.options import Options

EARLIER_DAYS = "earlier_days"


def counted_days(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the days in the dictionary of a result, oldest first; the last one is its own.

    Args:
        description: The content of its `records.json`.
    """
    rows = sum(description["rows_by_file"])
    crc32 = _sum(
        rows,
        description["positives"],
        description["distinct_values"],
        description["missing_categories"],
    )
    own = {"files": description["files"], "rows": rows, "crc32": crc32}
    return [*description.get(EARLIER_DAYS, []), own]


def check_new_day(statistics: LogStatistics, options: Options) -> None:
    """Refuses to append logs that the dictionary has counted already.

    Args:
        statistics: The statistics of the logs, with the earlier days.
        options: The options of the run.

    Raises:
        ValueError: The logs are those of one of the days.
    """
    crc32 = _sum(statistics.rows, statistics.positives, statistics.distinct, statistics.missing)
    if not options.dictionary_tables:
        return  # nothing has been counted in them
    for day in statistics.earlier_days:
        if day["crc32"] == crc32:
            raise ValueError(
                f"{options.dictionary_flag}: expected logs that its dictionary has not counted,"
                f" found those of {', '.join(day['files'])}; give the logs of a new day, or"
                f" --dictionary={options.dictionary} to use the ids as they are"
            )


def _sum(rows: int, positives: int, distinct: Sequence[int], missing: Sequence[int]) -> str:
    return sum_of_json({"counts": [rows, positives, list(distinct), list(missing)]})
