"""What a pass over a log has learnt about its columns: the texts of tables and dense statistics.

`dictionary/columns.json` in the output keeps the statistics, and the column `text` of a table's
dictionary its texts, so that later data is treated alike. This module must not know about engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from preprocess.columns import LogColumns
from preprocess.dictionary_files import table_name
from preprocess.outputs import DICTIONARY
from preprocess.transforms import DenseStatistics

STATISTICS = f"{DICTIONARY}/columns.json"
TEXTS_SCHEMA = {"value": pl.UInt32, "text": pl.String}


@dataclass
class Learned:
    """What is known about the columns of a log before its rows are made.

    Attributes:
        dense: The statistics of each dense column.
        texts: For each table whose values are texts, by number: (value, text), in order of the
            values. A value is the number of its text in order of first appearance.
    """

    dense: Sequence[DenseStatistics]
    texts: Mapping[int, pl.DataFrame] = field(default_factory=dict)


def statistics_text(log: LogColumns, dense: Sequence[DenseStatistics]) -> str:
    """Returns the content of `columns.json`."""
    content = {column.name: asdict(known) for column, known in zip(log.dense, dense)}
    return json.dumps({"dense": content}, indent=2) + "\n"


def parse_statistics(log: LogColumns, text: str | None, origin: str) -> list[DenseStatistics]:
    """Returns the statistics that `columns.json` of a folder holds.

    Args:
        log: The columns of the present run.
        text: The content of the file; None if it is absent.
        origin: Where it is from, for messages.

    Raises:
        ValueError: The statistics are of other columns.
    """
    content: dict[str, Any] = json.loads(text)["dense"] if text else {}
    if list(content) != [column.name for column in log.dense]:
        raise ValueError(
            f"{origin}: expected a result made with the dense columns"
            f" {', '.join(column.name for column in log.dense)}, found"
            f" {', '.join(content) or 'no ' + STATISTICS}; give the same schema"
        )
    return [DenseStatistics(**known) for known in content.values()]


def old_texts(folder: Path, table: int) -> pl.DataFrame:
    """Returns the texts of a table of an earlier result, in order of their values.

    Raises:
        ValueError: The table has no texts.
    """
    path = folder / table_name(table)
    names = pl.read_parquet_schema(path)
    if "text" not in names:
        raise ValueError(
            f"{path}: expected a column of texts, found {', '.join(names)}; give the same schema"
        )
    frame = pl.read_parquet(path, columns=["value", "text"])
    return frame.cast(TEXTS_SCHEMA).sort("value")  # type: ignore[arg-type]
