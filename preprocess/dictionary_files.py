"""The dictionaries of a result as Parquet: `dictionary/table_0.parquet` and so on.

Columns: `feature` (index of the table), `value` (the number that a field stands for, after the
modulus), `id`, `count` (rows that hold it); in the order of the ids. Values that share id 0 are not
in it. It must not know about how ids are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats.file_names import RECORDS
from dlrm.formats.json_files import read_json_object
from preprocess.options import Options
from preprocess.outputs import DICTIONARY

SCHEMA = {"feature": pl.Int32, "value": pl.UInt32, "id": pl.Int32, "count": pl.Int64}


def table_name(table: int) -> str:
    """File of a table's dictionary, within the output folder."""
    return f"{DICTIONARY}/table_{table}.parquet"


@dataclass(frozen=True)
class TableIds:
    """One table's dictionary.

    Attributes:
        values: In the order of their ids, uint32 [values].
        counts: Rows that hold each, int64 [values].
        first_id: Id of the first value.
        vocab_size: Rows of the table.
    """

    values: NDArray[np.uint32]
    counts: NDArray[np.int64]
    first_id: int
    vocab_size: int


def write_table(folder: Path, table: int, ids: TableIds) -> None:
    """Writes one table's dictionary into a result's folder; equal content gives equal bytes."""
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
    frame.write_parquet(path, compression="zstd", row_group_size=1 << 20)


def read_table(folder: Path, table: int, vocab_size: int) -> TableIds:
    """Reads one table's dictionary from a result's folder.

    Raises:
        ValueError: It is not one.
        OSError: It cannot be read.
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


def check_reuse(description: dict[str, object], place: str, options: Options) -> list[int]:
    """The vocabulary sizes of an earlier result whose dictionary is to be used.

    Args:
        description: Its `records.json`.
        place: Its folder, for messages.
        options: What is asked for now.

    Raises:
        ValueError: It was made by other rules, or for another number of tables.
    """
    rules = options.rules
    expected = {"rules": rules.name, "max_table_rows": rules.max_table_rows}
    for key, value in expected.items():
        if description.get(key) != value:
            raise ValueError(
                f"--dictionary={place}: expected one made with {key} {value}, found"
                f" {description.get(key)}; give the same rules"
            )
    sizes = description["vocab_sizes"]
    assert isinstance(sizes, list)
    if len(sizes) != options.num_categorical:
        raise ValueError(
            f"--dictionary={place}: expected {options.num_categorical} tables, found {len(sizes)}"
        )
    return sizes


def read_description(folder: Path) -> dict[str, object]:
    """`records.json` of an earlier result."""
    return read_json_object(folder / RECORDS, "give --dictionary the output folder of an ingest")
