"""Reads the table rows of a checkpoint by key, whatever number of ranks wrote them.

A single process reads, without any part of a training run: only files and keys are involved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ROWS, Manifest, tables_file
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.distributed import sharding


class TableReader:
    """Reads rows, and optimizer state if asked to; a context that closes the files at its end.

    Key k is row k // ranks of file k % ranks.

    Args:
        folder: The folder of the checkpoint.
        manifest: The checkpoint's manifest.
        state: The optimizer's state to read with each row: name and number of columns.

    Attributes:
        ranks: Number of ranks that wrote the checkpoint, one file each.
        keys: Number of keys, which is the number of rows of all tables.
        width: Number of values read for a key: the row, then its state.
        state: As given.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, state: Mapping[str, int] | None = None
    ) -> None:
        self.state = state or {}
        self.ranks = manifest.ranks
        self.width = manifest.model.embedding_dim + sum(self.state.values())
        self._tensors = (ROWS, *self.state)
        self.keys = sum(manifest.model.vocab_sizes)
        self._folder, self._files = folder, manifest.files
        self._open: dict[int, TensorReader] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TableReader:
        """Returns the reader itself."""
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows_of(self, rank: int) -> int:
        """Number of rows in the file that a rank wrote."""
        return sharding.local_rows(self.keys, rank, self.ranks)

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
        return {name: shape[1] for name, (_, shape) in tensors.items() if name != ROWS}

    def _file(self, rank: int) -> TensorReader:
        """The reader of a rank's file, opened at its first use."""
        if rank not in self._open:
            name = tables_file(rank, self.ranks)
            reader = TensorReader(self._folder / name, self._files[name])
            self._open[rank] = self._stack.enter_context(reader)
        return self._open[rank]

    def read_keys(self, first: int, last: int) -> NDArray[np.float32]:
        """Reads the rows of keys [first, last), float32 [last - first, width].

        Raises:
            ValueError, OSError: A file is damaged or cannot be read, as for `read_rows`.
        """
        values = np.empty((last - first, self.width), np.float32)
        for rank in range(self.ranks):
            # This rank holds every ranks-th of the keys, in consecutive rows of its file.
            start, stop = (sharding.local_rows(keys, rank, self.ranks) for keys in (first, last))
            if start < stop:
                position = sharding.key_of(start, rank, self.ranks) - first
                values[position :: self.ranks] = self.read_rows(rank, start, stop)
        return values
