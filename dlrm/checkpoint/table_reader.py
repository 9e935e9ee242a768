"""The rows of all tables in a checkpoint, read by key, whatever number of ranks wrote them.

One process alone; knows files and keys, nothing of training.
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
    """Key k is row k // ranks of file k % ranks.

    Args:
        folder: of the checkpoint.
        manifest: its manifest.
        state: The optimizer's state to read behind each row: name and number of columns.

    Raises:
        ValueError: a file is missing, of another size, or its header is damaged.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, state: Mapping[str, int] | None = None
    ) -> None:
        state = state or {}
        self.ranks = manifest.ranks
        self.width = manifest.model.embedding_dim + sum(state.values())
        self._tensors = (ROWS, *state)
        self.keys = sum(manifest.model.vocab_sizes)
        self._folder, self._files = folder, manifest.files
        self._open: dict[int, TensorReader] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TableReader:
        """Itself; leaving the context closes the files."""
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows_of(self, rank: int) -> int:
        """Rows in the file of a rank of those that wrote."""
        return sharding.local_rows(self.keys, rank, self.ranks)

    def read_rows(self, rank: int, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) of one file: the keys row * ranks + rank.

        Returns:
            float32 [last - first, width].

        Raises:
            ValueError: a block is damaged; names file and offset.
            OSError: a file cannot be read.
        """
        parts = [self._file(rank).read(tensor, first, last) for tensor in self._tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def state_in_files(self) -> dict[str, int]:
        """The optimizer's state that the checkpoint holds: name and number of columns.

        Raises:
            ValueError, OSError: as `read_rows`.
        """
        tensors = self._file(0).tensors
        return {name: shape[1] for name, (_, shape) in tensors.items() if name != ROWS}

    def _file(self, rank: int) -> TensorReader:
        if rank not in self._open:
            name = tables_file(rank, self.ranks)
            reader = TensorReader(self._folder / name, self._files[name])
            self._open[rank] = self._stack.enter_context(reader)
        return self._open[rank]

    def read_keys(self, first: int, last: int) -> NDArray[np.float32]:
        """The rows of keys [first, last), float32 [last - first, width]; errors as `read_rows`."""
        values = np.empty((last - first, self.width), np.float32)
        for rank in range(self.ranks):
            # The keys of this rank are a run of its rows and every ranks-th of the values.
            start, stop = (sharding.local_rows(keys, rank, self.ranks) for keys in (first, last))
            if start < stop:
                position = sharding.key_of(start, rank, self.ranks) - first
                values[position :: self.ranks] = self.read_rows(rank, start, stop)
        return values
