"""The tables of a dynamic checkpoint in an artifact: known ids, and a row 0 for all others.

Which ids are known, and their rows, come from `dlrm.checkpoint`. How rows are encoded is not the
concern of this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.export import Table
from dlrm.checkpoint.known_rows import KnownRows
from dlrm.checkpoint.manifest import ModelShape
from dlrm.checkpoint.safetensors_file import FileDigest, TensorWriter
from dlrm.checkpoint.table_reader import TableReader
from serving.artifact import IDS, KNOWN_IDS_FILE, KnownIds
from serving.row_frequencies import KeyCounts
from serving.table_files import RowSource


class KnownTable:
    """A table whose row 0 is that of unknown ids, and row i + 1 that of its i-th known id.

    Args:
        table: The rows of the known ids.
        ids: The known ids, int32 [n], ascending.
        others: Row 0, float32 [width].

    Attributes:
        rows: Number of rows.
        width: Number of values in a row.
        ids: As given.
    """

    def __init__(self, table: Table, ids: NDArray[np.int32], others: NDArray[np.float32]) -> None:
        self._table, self.ids, self._others = table, ids, others
        self.rows, self.width = 1 + table.rows, table.width

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields pieces in order: the first row of each and its values, float32 [n, width]."""
        yield 0, self._others[None]
        first = 1
        for _, rows in self._table.with_ids():
            yield first, rows
            first += len(rows)

    def name_of(self, row: int) -> str:
        """What a row is called in a message."""
        return f"id {self.ids[row - 1]}" if row else "the row of all ids without one"


class ServedTables:
    """The tables of a checkpoint in the form of an artifact.

    Args:
        reader: Reads the checkpoint.
        known: What a dynamic checkpoint knows; None of another one.
        model: The shape of the model.

    Attributes:
        sources: The rows of each table.
        known_ids: The ids with a row of their own; None if all have one.
    """

    def __init__(self, reader: TableReader, known: KnownRows | None, model: ModelShape) -> None:
        first_keys = [0, *accumulate(model.vocab_sizes)]
        self.sources: list[RowSource] = []
        self.known_ids: KnownIds | None = None
        self._known: list[KnownTable] = []
        # The initial values of ids without a row are each their own: the scorer computes them.
        zeros = np.zeros(model.embedding_dim, np.float32)
        for table, (first_key, size) in enumerate(zip(first_keys, model.vocab_sizes)):
            if known is None:
                self.sources.append(Table(reader, first_key, size))
                continue
            keys = known.keys_of(table)
            others = zeros if known.shared is None else known.shared[table]
            rows = Table(reader, first_key, size, keys)
            self._known.append(KnownTable(rows, (keys - first_key).astype(np.int32), others))
        if known is None:
            return
        self.sources += self._known
        seed = known.seed if known.shared is None else None
        self.known_ids = KnownIds(tuple(len(table.ids) for table in self._known), seed)

    def write_ids(self, folder: Path) -> FileDigest:
        """Writes `known_ids.safetensors` into an artifact's folder."""
        count = sum(len(table.ids) for table in self._known)
        specs = {IDS: (np.dtype("<i4"), (count,))}
        with TensorWriter(folder / KNOWN_IDS_FILE, specs) as writer:
            for table in self._known:
                writer.write(table.ids)
            return writer.finish()

    def row_counts(self, counts: KeyCounts) -> NDArray[np.int64]:
        """How often each row is used, int64 [rows of all tables]."""
        if self.known_ids is None:
            return counts.of_all()
        return np.concatenate(
            [counts.of_ids(table, known.ids) for table, known in enumerate(self._known)]
        )
