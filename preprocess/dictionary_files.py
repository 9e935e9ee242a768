"""The dictionaries of a result as Parquet files: `dictionary/table_0.parquet` and so on.

The columns are `feature` (index of the table), `value` (the number of the field, after the
modulus), `id`, `count` (number of rows with the value) and, where values are texts of their own,
`text`. Rows are in order of the ids; values
that share id 0 are left out. This module must not know how ids are assigned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats.file_names import RECORDS
from dlrm.formats.json_files import read_json_object
from preprocess.options import Options
from preprocess.outputs import DICTIONARY
from preprocess.rules import GENERIC

SCHEMA = {"feature": pl.Int32, "value": pl.UInt32, "id": pl.Int32, "count": pl.Int64}


def table_name(table: int) -> str:
    """Returns the path of a table's dictionary within the output folder."""
    return f"{DICTIONARY}/table_{table}.parquet"


@dataclass(frozen=True)
class TableIds:
    """The dictionary of one table.

    Attributes:
        values: The values in order of their ids, uint32 [values].
        counts: The number of rows with each value, int64 [values].
        first_id: The id of the first value.
        vocab_size: The number of rows of the embedding table.
    """

    values: NDArray[np.uint32]
    counts: NDArray[np.int64]
    first_id: int
    vocab_size: int


def write_table(folder: Path, table: int, ids: TableIds, texts: pl.DataFrame | None = None) -> None:
    """Writes a table's dictionary into an output folder; equal content gives equal bytes.

    Args:
        folder: The output folder.
        table: The index of the table.
        ids: The dictionary.
        texts: The text that each value stands for, (value, text); None if values are numbers.
    """
    path = folder / table_name(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(ids.values)
    frame = pl.DataFrame(
        {
            "feature": np.full(size, table, np.int32),
            "value": ids.values,
            "id": np.arange(ids.first_id, ids.first_id + size, dtype=np.int32),
            "count": ids.counts,
        },
        schema=SCHEMA,
    )
    if texts is not None:
        frame = frame.join(texts, on="value", how="left", maintain_order="left").rechunk()
    frame.write_parquet(path, compression="zstd", row_group_size=1 << 20)


def read_table(folder: Path, table: int, vocab_size: int) -> TableIds:
    """Reads a table's dictionary from an output folder.

    Raises:
        ValueError: The file is not a dictionary, or its ids do not fit the table.
        OSError: The file cannot be read.
    """
    path = folder / table_name(table)
    try:
        frame = pl.read_parquet(path, columns=list(SCHEMA))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: expected a dictionary, found {error}; make it again") from None
    first_id = int(frame["id"][0]) if frame.height else 0
    dense = frame["id"].equals(
        pl.Series("id", np.arange(first_id, first_id + frame.height, dtype=np.int32))
    )
    if not dense or first_id + frame.height > vocab_size:
        raise ValueError(f"{path}: expected ids in order, below {vocab_size}; make it again")
    return TableIds(
        frame["value"].cast(pl.UInt32).to_numpy(), frame["count"].to_numpy(), first_id, vocab_size
    )


def check_reuse(description: Mapping[str, Any], options: Options) -> list[int]:
    """Returns the vocabulary sizes of an earlier result whose dictionary is reused.

    Args:
        description: The content of its `records.json`.
        options: The options of the present run.

    Raises:
        ValueError: The result was made by other rules or has another number of tables.
    """
    rules, tables = options.rules, options.num_categorical
    expected: dict[str, Any] = {"rules": rules.name, "max_table_rows": rules.max_table_rows}
    if rules.name == GENERIC:  # the name does not say these
        own = {
            "missing_is_value": rules.missing_is_value,
            "moduli": [rules.modulus(table) for table in range(tables)],
        }
        expected.update((key, value) for key, value in own.items() if key in description)
        expected["hashed"] = list(rules.hashed) or None
    if options.append_day:
        expected["frequency_threshold"] = rules.frequency_threshold
    sizes = description["vocab_sizes"]
    assert isinstance(sizes, list)
    if len(sizes) != tables:
        raise ValueError(
            f"{options.dictionary_flag}: expected {tables} tables, found {len(sizes)}; give the"
            " result of logs with the same columns"
        )
    for key, value in expected.items():
        if description.get(key) != value:
            raise ValueError(
                f"{options.dictionary_flag}: expected one made with {key} {value}, found"
                f" {description.get(key)}; give the same rules"
            )
    bags = [bag["table"] for bag in description.get("bags", [])]
    if bags != [bag.table for bag in options.bags]:
        raise ValueError(
            f"{options.dictionary_flag}: expected bags of ids in tables"
            f" {[bag.table for bag in options.bags]}, found {bags}; give the same schema"
        )
    return sizes


def check_first_id(found: int | None, table: int, options: Options) -> None:
    """Refuses to append to the dictionary of a table that treats id 0 otherwise.

    Args:
        found: The first id of the dictionary; None if it is empty.
        table: The index of the table.
        options: The options of the present run.

    Raises:
        ValueError: Only one of them reserves id 0 for rare and missing values.
    """
    first = options.rules.first_id(table)
    if found is not None and found != first:
        raise ValueError(
            f"{options.dictionary_flag}: expected {first} as the first id of a value in table"
            f" {table}, found {found}; give the same threshold"
        )


def read_description(folder: Path, flag: str = "--dictionary") -> dict[str, Any]:
    """Reads `records.json` of an earlier result.

    Args:
        folder: The output folder of the result.
        flag: The flag that named it, with or without its value, for error messages.

    Raises:
        ValueError, OSError: There is none.
    """
    name = flag.partition("=")[0]
    return read_json_object(folder / RECORDS, f"give {name} the output folder of an earlier run")
