"""Reads the table rows of a checkpoint by key, whatever number of ranks wrote them.

A single process reads, without any part of a training run: only files and keys are involved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ROWS, Manifest, tables_file
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.distributed import sharding

# What a file holds before its rows if ids have one only once they occurred: the key of each row, in
# ascending order, and then that of each id without one; the number of steps that held it, and the
# last of them; and the rows that ids without one share.
KEYS, COUNTS, SHARED = "keys", "counts", "shared"


class TableReader:
    """Reads rows, and optimizer state if asked to; a context that closes the files at its end.

    Key k is row k // ranks of file k % ranks; or, where ids have a row only once they occurred,
    wherever that file names it.

    Args:
        folder: The folder of the checkpoint.
        manifest: The checkpoint's manifest.
        state: The optimizer's state to read with each row: name and number of columns.

    Attributes:
        ranks: Number of ranks that wrote the checkpoint, one file each.
        keys: Number of keys, which is the number of rows of all tables.
        width: Number of values read for a key: the row, then its state.
        state: As given.
        dynamic: Whether ids have a row only once they occurred.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        state: Mapping[str, int] | None = None,
    ) -> None:
        self.dynamic = manifest.model.dynamic
        self.state = state or {}
        self.ranks = manifest.ranks
        self.width = manifest.model.embedding_dim + sum(self.state.values())
        self._tensors = (ROWS, *self.state)
        self.keys = sum(manifest.model.vocab_sizes)
        self._folder, self._files = folder, manifest.files
        self._open: dict[int, TensorReader] = {}
        self._stack = contextlib.ExitStack()
        self._own_keys: dict[int, NDArray[np.int64]] = {}

    def __enter__(self) -> TableReader:
        """Returns the reader itself."""
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows_of(self, rank: int) -> int:
        """Number of rows in the file that a rank wrote."""
        if self.dynamic:
            return self._file(rank).tensors[ROWS][1][0]
        return sharding.local_rows(self.keys, rank, self.ranks)

    def keys_of(self, rank: int) -> int:
        """Number of keys in the file that a rank wrote; all have a row if every id has one."""
        return self._file(rank).tensors[KEYS][1][0] if self.dynamic else self.rows_of(rank)

    def read(self, rank: int, tensor: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Reads rows [first, last) of a tensor of a rank's file, all by default.

        Raises:
            ValueError, OSError: As for `read_rows`.
        """
        return self._file(rank).read(tensor, first, last)

    def read_rows(self, rank: int, first: int, last: int) -> NDArray[np.float32]:
        """Reads rows [first, last) of one file: those of the keys row * ranks + rank.

        Returns:
            Rows with their state, float32 [last - first, width].

        Raises:
            ValueError: The file has another size than in the manifest, or its header or a block is
                damaged; the message names the file and offset.
            OSError: The file is missing or cannot be read.
        """
        parts = [self._file(rank).read(tensor, first, last) for tensor in self._tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def state_in_files(self) -> dict[str, int]:
        """The optimizer's state that the checkpoint holds: name and number of columns.

        Raises:
            ValueError, OSError: The first file is damaged or cannot be read, as for `read_rows`.
        """
        tensors = self._file(0).tensors
        others = (ROWS, KEYS, COUNTS, SHARED)
        return {name: shape[1] for name, (_, shape) in tensors.items() if name not in others}

    def read_seen(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads the rows of ascending keys that have one, float32 [n, width].

        What lies between the first and the last of them is read too.

        Raises:
            ValueError, OSError: A file is damaged or cannot be read, as for `read_rows`.
        """
        values = np.empty((len(keys), self.width), np.float32)
        owners = sharding.owner_of(keys, self.ranks)
        for rank in np.unique(owners).tolist():
            here = owners == rank
            of_rank = keys[here]
            rows = np.searchsorted(self.own_keys(rank), of_rank)
            first = int(rows[0])
            values[here] = self.read_rows(rank, first, int(rows[-1]) + 1)[rows - first]
        return values

    def own_keys(self, rank: int) -> NDArray[np.int64]:
        """The keys of the rows in the file of dynamic tables that a rank wrote, ascending.

        Raises:
            ValueError, OSError: The file is damaged or cannot be read, as for `read_rows`.
        """
        if rank not in self._own_keys:
            self._own_keys[rank] = self.read(rank, KEYS, 0, self.rows_of(rank))
        return self._own_keys[rank]

    def _file(self, rank: int) -> TensorReader:
        """The reader of a rank's file, opened at its first use."""
        if rank not in self._open:
            name = tables_file(rank, self.ranks)
            reader = TensorReader(self._folder / name, self._files[name])
            self._open[rank] = self._stack.enter_context(reader)
        return self._open[rank]

    def read_keys(self, first: int, last: int) -> NDArray[np.float32]:
        """Reads the rows of keys [first, last), where every id has one, float32 [n, width].

        Raises:
            ValueError, OSError: A file is damaged or cannot be read, as for `read_rows`.
        """
        assert not self.dynamic, "a file of dynamic tables names its keys"
        values = np.empty((last - first, self.width), np.float32)
        for rank in range(self.ranks):
            # This rank holds every ranks-th of the keys, in consecutive rows of its file.
            start, stop = (sharding.local_rows(keys, rank, self.ranks) for keys in (first, last))
            if start < stop:
                position = sharding.key_of(start, rank, self.ranks) - first
                values[position :: self.ranks] = self.read_rows(rank, start, stop)
        return values
