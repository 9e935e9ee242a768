"""The ids of samples as the scorer takes them: as many columns as a sample may have ids.

A table of one id has one column, a table of bags `max_ids` of them, where `NO_ID` stands for none.
All samples have the same columns, so requests can be put behind each other. NumPy alone: neither
files nor the scorer's library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bags import BagLayout, Bags

if TYPE_CHECKING:
    from dlrm.checkpoint.manifest import ModelShape

NO_ID = -1


class SampleIds(NamedTuple):
    """The ids of some samples.

    Attributes:
        ids: int32 [B, C].
        weights: float32 [B, C], a factor for each id; None if the model takes none.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32] | None = None

    def rows(self, rows: Any) -> SampleIds:
        """Some of the samples, by whatever indexes an array."""
        return SampleIds(self.ids[rows], None if self.weights is None else self.weights[rows])

    def put(self, rows: Any, others: SampleIds) -> None:
        """Overwrites some of the samples."""
        self.ids[rows] = others.ids
        if self.weights is not None:
            self.weights[rows] = others.weights

    @classmethod
    def join(cls, parts: Iterable[SampleIds]) -> SampleIds:
        """Puts samples behind each other."""
        ids, weights = zip(*parts)
        return cls(np.concatenate(ids), None if weights[0] is None else np.concatenate(weights))


class IdColumns:
    """The columns of a model's ids.

    Args:
        tables: Number of tables.
        max_ids: The most ids of a bag of each table, 0 of a table of one id; empty without bags.
        weights: Whether ids have weights.

    Attributes:
        counts: Number of columns of each table, int64 [T].
        tables: The table of each column, int64 [C].
        width: Number of columns, C.
        bags: Whether any table holds bags.
        weights: Whether ids have weights.
    """

    def __init__(self, tables: int, max_ids: Sequence[int], weights: bool) -> None:
        self.bags, self.weights = bool(max_ids), weights
        most = np.array(max_ids or (0,) * tables, np.int64)
        self._in_bag = most > 0
        self.counts = np.maximum(most, 1)
        self.tables = np.repeat(np.arange(tables), self.counts)
        self.width = len(self.tables)

    @classmethod
    def of_model(cls, model: ModelShape) -> IdColumns:
        """Those of a model."""
        return cls(len(model.vocab_sizes), model.max_ids, model.weighted)

    @classmethod
    def of_data(cls, tables: int, layout: BagLayout | None) -> IdColumns:
        """Those of data with so many tables, and its `bag_layout`."""
        bags = layout or BagLayout((), ())
        return cls(tables, bags.max_ids, bags.weights)

    def of_table(self, table: int) -> slice:
        """The columns of a table."""
        end = int(self.counts[: table + 1].sum())
        return slice(end - int(self.counts[table]), end)

    @property
    def may_be_empty(self) -> NDArray[np.bool_]:
        """Whether a column may hold `NO_ID`, bool [C]."""
        return self._in_bag[self.tables]

    def lay_out(self, ids: NDArray[Any] | Bags) -> SampleIds:
        """The columns of ids as data has them.

        Args:
            ids: int32 [B, T], or bags of them.

        Raises:
            ValueError: Lengths, ids and weights of bags do not fit each other or the model.
        """
        if not isinstance(ids, Bags):
            return SampleIds(np.asarray(ids))
        flat, lengths, weights = map(np.asarray, ids)
        self._check(flat, lengths, weights)
        samples = lengths.shape[1]
        found = SampleIds(
            np.full((samples, self.width), NO_ID, np.int32),
            np.ones((samples, self.width), np.float32) if self.weights else None,
        )
        counts = lengths.reshape(-1)  # of bag t * B + b
        bag = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts, dtype=np.int64) - counts
        firsts = np.cumsum(self.counts) - self.counts
        table, sample = bag // max(samples, 1), bag % max(samples, 1)
        columns = firsts[table] + np.arange(len(flat)) - starts[bag]
        found.ids[sample, columns] = flat
        if found.weights is not None:
            found.weights[sample, columns] = weights
        return found

    def data_of(self, ids: SampleIds) -> NDArray[np.int32] | Bags:
        """The inverse of `lay_out`: ids as data has them, for the trainer."""
        if not self.bags:
            return ids.ids
        parts = [self.of_table(table) for table in range(len(self.counts))]
        there = [ids.ids[:, part] != NO_ID for part in parts]
        flat = np.concatenate([ids.ids[:, part][mask] for part, mask in zip(parts, there)])
        lengths = np.stack([mask.sum(axis=1, dtype=np.int32) for mask in there])
        if ids.weights is None:
            return Bags(flat, lengths, np.empty(0, np.float32))
        weights = [ids.weights[:, part][mask] for part, mask in zip(parts, there)]
        return Bags(flat, lengths, np.concatenate(weights))

    def _check(self, ids: NDArray[Any], lengths: NDArray[Any], weights: NDArray[Any]) -> None:
        """Refuses bags that are not the model's, or not bags."""
        if lengths.ndim != 2 or len(lengths) != len(self.counts):
            raise ValueError(
                f"lengths: expected [{len(self.counts)}, samples], found {list(lengths.shape)}"
            )
        least = np.where(self._in_bag, 0, 1)
        bad = np.argwhere((lengths < least[:, None]) | (lengths > self.counts[:, None]))
        if len(bad):
            table, sample = map(int, bad[0])
            most = self.counts[table]
            wanted = f"0 to {most} ids (max_ids)" if self._in_bag[table] else "one id"
            raise ValueError(
                f"sample {sample}, table {table}: expected {wanted}, found "
                f"{lengths[table, sample]}; shorten the bag, or correct the offsets"
            )
        total = int(lengths.sum(dtype=np.int64))
        for name, values, count in (
            ("ids", ids, total),
            ("weights", weights, total if self.weights else 0),
        ):
            if len(values) != count:
                raise ValueError(
                    f"{name}: expected {count} by the lengths of the bags, found {len(values)}"
                )
        if len(ids) and ids.min() < 0:
            raise ValueError(
                f"ids: expected 0 or more, found {ids.min()}; use the ids that the model was "
                "trained with"
            )
