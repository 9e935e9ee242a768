"""Random bags of ids, and split folders that hold them: written here with NumPy alone.

Follows the format, independent of the code that reads and writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bags import Bags
from tests.support.tiny_data import write_split


class TableBags(NamedTuple):
    """The bags of one table.

    Attributes:
        table: Its number.
        pooling: `sum` or `mean`.
        bags: The ids of each sample.
        weights: The weights of each sample's ids; None if the table has none.
    """

    table: int
    pooling: str
    bags: list[NDArray[np.int32]]
    weights: list[NDArray[np.float32]] | None = None


def random_bags(
    rng: np.random.Generator,
    table: int,
    samples: int,
    rows: int,
    *,
    pooling: str = "sum",
    longest: int = 5,
    weights: bool = False,
) -> TableBags:
    """Draws bags of 0 to `longest` ids, some of which repeat."""
    lengths = rng.integers(0, longest + 1, samples)
    bags = [rng.integers(0, rows, length).astype(np.int32) for length in lengths]
    factors = [rng.normal(size=length).astype(np.float32) for length in lengths]
    return TableBags(table, pooling, bags, factors if weights else None)


def write_bags(
    folder: Path,
    labels: NDArray[Any],
    dense: NDArray[Any],
    single_ids: NDArray[Any],
    vocab_sizes: Sequence[int],
    tables: Sequence[TableBags],
    **metadata: Any,
) -> Path:
    """Writes a split folder with bags; the arguments are those of `write_split`."""
    about = []
    for bags in tables:
        about.append(
            {
                "table": bags.table,
                "pooling": bags.pooling,
                "max_ids": max(map(len, bags.bags)),
                "weights": bags.weights is not None,
            }
        )
        lengths = np.array([len(ids) for ids in bags.bags], "<i8")
        offsets = np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths)])
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"bag_{bags.table}_"
        np.concatenate(bags.bags).astype("<i4").tofile(folder / f"{prefix}ids.bin")
        offsets.tofile(folder / f"{prefix}offsets.bin")
        if bags.weights is not None:
            np.concatenate(bags.weights).astype("<f4").tofile(folder / f"{prefix}weights.bin")
    write_split(
        folder,
        labels,
        dense,
        single_ids,
        vocab_sizes,
        **{"num_dense": dense.shape[1], "category_raw_type": "int32", "bags": about, **metadata},
    )
    if not single_ids.shape[1]:
        (folder / "category.bin").unlink()
    return folder


def change_metadata(folder: Path, **values: Any) -> None:
    """Changes keys of `metadata.json`."""
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def batch_of(columns: Sequence[TableBags | NDArray[np.int32]], start: int, stop: int) -> Bags:
    """Puts the samples [start, stop) of all tables, with bags or single ids, into `Bags`."""
    ids, lengths, weights, weighted = [], [], [], False
    for column in columns:
        if isinstance(column, TableBags):
            bags = column.bags[start:stop]
            factors = column.weights or [np.ones(len(b), np.float32) for b in column.bags]
            weights += factors[start:stop]
            weighted = weighted or column.weights is not None
        else:
            bags = [np.array([value], np.int32) for value in column[start:stop]]
            weights += [np.ones(1, np.float32)] * len(bags)
        ids += bags
        lengths.append([len(bag) for bag in bags])
    joined = np.concatenate(weights) if weighted else np.empty(0, np.float32)
    return Bags(np.concatenate(ids), np.array(lengths, np.int32), joined)
