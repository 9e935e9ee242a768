"""Writes the dictionaries of a result: on this machine with Polars, elsewhere with Spark."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import polars as pl
from pyspark.sql import DataFrame
from pyspark.sql import functions as sf

from preprocess.dictionary_files import TableIds, table_name, write_table
from preprocess.learned import TEXTS_SCHEMA
from preprocess.options import Options


def write_remotely(
    dictionary: DataFrame,
    stage: Callable[[str], str],
    texts: Mapping[int, DataFrame],
    tables: Sequence[int],
) -> None:
    """Writes a folder of Parquet files for each table, in order of the ids.

    Args:
        dictionary: The dictionary (feature, value, id, count) of all tables.
        stage: Returns the path of a name within the work folder.
        texts: The texts of the tables that have them, (value, text) each.
        tables: The tables that have a dictionary.
    """
    for table in tables:
        one = dictionary.filter(sf.col("feature") == table)
        if table in texts:
            one = one.join(texts[table], "value", "left").select(
                "feature", "value", "id", "count", "text"
            )
        one.sort("id").write.mode("overwrite").parquet(stage(table_name(table)))


def write_locally(
    work: Path,
    texts: Collection[int],
    vocab_sizes: Sequence[int],
    options: Options,
) -> None:
    """Writes one Parquet file for each table, the same bytes as the engine for one machine.

    Args:
        work: The work folder, where Spark has written the dictionary of all tables, `numbered`,
            and the texts of all tables, `texts`.
        texts: The tables that have texts.
        vocab_sizes: The number of rows of each table.
        options: The options of the run.
    """
    numbered = pl.scan_parquet(work / "numbered" / "*.parquet")
    for table in options.dictionary_tables:
        # Only one table at a time is in memory.
        frame = numbered.filter(pl.col("feature") == table).sort("id").collect()
        ids = TableIds(
            frame["value"].cast(pl.UInt32).to_numpy(),
            frame["count"].to_numpy().astype(np.int64),
            int(frame["id"][0]) if frame.height else options.rules.first_id(table),
            vocab_sizes[table],
        )
        own = _texts(work / "texts", table) if table in texts else None
        write_table(work, table, ids, own)


def _texts(folder: Path, table: int) -> pl.DataFrame:
    """Returns the texts of a table, staged on this machine, as (value, text)."""
    if not folder.exists():
        return pl.DataFrame(schema=TEXTS_SCHEMA)
    staged = pl.scan_parquet(folder / "*.parquet").filter(pl.col("feature") == table)
    return staged.select("value", "text").collect().cast(TEXTS_SCHEMA).sort("value")  # type: ignore[arg-type]
