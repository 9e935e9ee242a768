"""The rows of a checkpoint's dynamic tables as an evaluation of the run finds them.

An id has its own row if it got one and was not forgotten by the checkpoint's step. All others of a
table have the row that they share, or the initial values of their keys. NumPy alone computes here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import Manifest
from dlrm.checkpoint.table_reader import COUNTS, SHARED, TableReader
from dlrm.distributed.sharding import key_offsets
from dlrm.formats.splitmix64 import GAMMA, mix

Rows = NDArray[np.float32]


class KnownRows:
    """The rows of those ids that have one, and what the others have.

    Args:
        reader: Reads the checkpoint.
        manifest: Its manifest.

    Attributes:
        keys: The keys that have a row, int64 [n], ascending.
        shared: The row that the others of each table share, float32 [T, W]; None if each has its
            initial values.
        seed: The seed of the initial values.
        width: W, the number of values in a row.

    Raises:
        ValueError, OSError: A file is damaged or cannot be read.
    """

    def __init__(self, reader: TableReader, manifest: Manifest) -> None:
        self._reader, self._sizes = reader, manifest.model.vocab_sizes
        self.width, self.seed = reader.width, int(manifest.settings["seed"])
        shared = reader.read(0, SHARED)
        self.shared: Rows | None = shared[:, : self.width] if len(shared) else None
        # Who is known in the next step: see `RowTable.find` and the training loop's evaluation.
        kept = manifest.settings["evict_after"]
        oldest = manifest.position.step + 1 - kept if kept else None
        self.keys = np.sort(
            np.concatenate([_living(reader, rank, oldest) for rank in range(reader.ranks)])
        )
        self._offsets = key_offsets(self._sizes)

    def keys_of(self, table: int) -> NDArray[np.int64]:
        """The keys of a table that have a row, int64 [n], ascending."""
        first = int(self._offsets[table])
        begin, end = np.searchsorted(self.keys, [first, first + self._sizes[table]])
        return self.keys[begin:end]

    def read(self, keys: NDArray[np.int64], rows: int) -> Rows:
        """Reads the rows of ascending keys as an evaluation does, float32 [n, W].

        Args:
            keys: int64 [n]; with or without a row of their own.
            rows: How many known rows of the checkpoint are read at a time.

        Raises:
            ValueError, OSError: A file is damaged or cannot be read.
        """
        places = np.searchsorted(self.keys, keys)
        known = places < len(self.keys)
        known[known] = self.keys[places[known]] == keys[known]
        values = np.empty((len(keys), self.width), np.float32)
        wanted = np.flatnonzero(known)
        # Of each stretch of known keys, what lies between the first and the last wanted one.
        stretches = np.flatnonzero(np.diff(places[wanted] // rows)) + 1
        for part in np.split(wanted, stretches):
            if len(part):
                values[part] = self._reader.read_seen(keys[part])
        others = keys[~known]
        values[~known] = (
            initial_rows(others, self._sizes, self.width, self.seed)
            if self.shared is None
            else self.shared[self._tables_of(others)]
        )
        return values

    def _tables_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._offsets, keys, side="right") - 1


def initial_bounds(vocab_sizes: tuple[int, ...]) -> NDArray[np.float32]:
    """The bound of the initial values of each table, float32 [T]: 1 / sqrt(ids)."""
    return (1.0 / np.sqrt(np.maximum(vocab_sizes, 1))).astype(np.float32)


def initial_rows(
    keys: NDArray[np.int64], vocab_sizes: tuple[int, ...], width: int, seed: int
) -> Rows:
    """The initial values of keys, bit for bit those of `dlrm.embedding.FusedTable.initial`.

    Args:
        keys: int64 [n].
        vocab_sizes: Number of ids of each table.
        width: W, the number of values in a row.
        seed: The seed of the run.

    Returns:
        float32 [n, W].
    """
    counters = (keys[:, None] * width + np.arange(width)).astype(np.uint64)
    words = np.uint64(seed * GAMMA * GAMMA % 2**64) + (counters + np.uint64(1)) * np.uint64(GAMMA)
    mix(words)
    values = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    tables = np.searchsorted(np.cumsum(vocab_sizes, dtype=np.int64), keys, side="right")
    return values * initial_bounds(vocab_sizes)[tables][:, None]


def _living(reader: TableReader, rank: int, oldest: int | None) -> NDArray[np.int64]:
    """The keys of a rank's file that have a row, and were held by a step from `oldest` on."""
    keys = reader.own_keys(rank)
    if oldest is None:
        return keys
    return keys[reader.read(rank, COUNTS, 0, len(keys))[:, 1] >= oldest]
