"""Bags of ids: which tables hold several ids per sample, and the bags of a batch.

No files and no tensors: `bag_files` stores bags, `dlrm.embedding` looks them up and pools them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

POOLINGS = ("sum", "mean")
MAX_IDS = 2**31 - 1  # lengths are int32


@dataclass(frozen=True)
class BagTable:
    """A table that holds a bag of ids for each sample, as `metadata.json` describes it.

    Attributes:
        table: Number of the table among all tables.
        pooling: How the rows of a bag become its vector: `sum`, or `mean`, which divides the sum by
            the number of ids.
        max_ids: The most ids of a bag.
        weights: Whether each id has a weight, a factor on its row.

    Raises:
        ValueError: An attribute has a value that no table can have.
    """

    table: int
    pooling: str
    max_ids: int
    weights: bool = False

    def __post_init__(self) -> None:
        if type(self.table) is not int or self.table < 0:
            raise ValueError(f"bags: expected the number of a table, found {self.table!r}")
        where = f"bags: table {self.table}"
        if self.pooling not in POOLINGS:
            raise ValueError(f"{where}: expected pooling sum or mean, found {self.pooling!r}")
        if type(self.max_ids) is not int or not 1 <= self.max_ids <= MAX_IDS:
            raise ValueError(
                f"{where}: expected max_ids from 1 to {MAX_IDS}, found {self.max_ids!r}"
            )
        if not isinstance(self.weights, bool):
            raise ValueError(f"{where}: expected weights of true or false, found {self.weights!r}")

    def to_json(self) -> dict[str, Any]:
        """The object of the table in the list `bags` of `metadata.json`."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, content: object) -> BagTable:
        """The inverse of `to_json`.

        Raises:
            ValueError: The value does not describe a table with bags.
        """
        needed = {"table", "pooling", "max_ids"}
        if not isinstance(content, dict) or not needed <= content.keys() <= needed | {"weights"}:
            raise ValueError(
                'bags: expected objects such as {"table": 3, "pooling": "sum", "max_ids": 12, '
                f'"weights": false}}, found {content!r}'
            )
        return cls(**content)


def check_bag_tables(bags: Sequence[BagTable], tables: int) -> None:
    """Raises `ValueError` unless the tables with bags exist and are in order."""
    numbers = [bag.table for bag in bags]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= tables):
        raise ValueError(
            f"bags: expected tables from 0 to {tables - 1} in ascending order, found "
            f"{', '.join(map(str, numbers))}"
        )


@dataclass(frozen=True)
class BagLayout:
    """How the tables of a model are pooled. A table without bags has bags of one id.

    Attributes:
        pooling: `sum` or `mean` for each table.
        mean_ids: The average number of ids in a bag of each table. Costs are estimated from it.
        weights: Whether ids have weights; those of tables without are 1.
        max_ids: The most ids of a bag of each table, 0 of a table without bags.
    """

    pooling: tuple[str, ...]
    mean_ids: tuple[float, ...]
    weights: bool = False
    max_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tables: int, bags: Sequence[BagTable], mean_ids: Sequence[float]) -> BagLayout:
        """Describes all tables of some data.

        Args:
            tables: Number of tables.
            bags: The tables with bags.
            mean_ids: The average number of ids in a bag of each of them.
        """
        pooling, means, most = ["sum"] * tables, [1.0] * tables, [0] * tables
        for bag, mean in zip(bags, mean_ids):
            pooling[bag.table], means[bag.table], most[bag.table] = bag.pooling, mean, bag.max_ids
        weights = any(bag.weights for bag in bags)
        return cls(tuple(pooling), tuple(means), weights, tuple(most))

    def of_tables(self, tables: slice) -> BagLayout:
        """The layout of some of the tables."""
        return BagLayout(
            self.pooling[tables], self.mean_ids[tables], self.weights, self.max_ids[tables]
        )

    @property
    def ids_per_sample(self) -> int:
        """Number of ids that a sample has on average, rounded up."""
        return math.ceil(sum(self.mean_ids))


class Bags(NamedTuple):
    """The ids of a batch whose tables hold bags: arrays, tensors, or their specifications.

    T tables, B samples, V ids.

    Attributes:
        ids: int32 [V], table by table, and for each table sample by sample.
        lengths: int32 [T, B], the number of ids in each bag; their sum is V.
        weights: float32 [V], a factor for each id; [0] if no table has weights.
    """

    ids: Any
    lengths: Any
    weights: Any


def ids_of_tables(bags: Bags) -> list[NDArray[np.int32]]:
    """Cuts the ids of a batch of arrays into those of each table."""
    return np.split(bags.ids, np.cumsum(bags.lengths.sum(axis=1, dtype=np.int64))[:-1])
