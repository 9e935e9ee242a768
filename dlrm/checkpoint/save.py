"""Saves the state of a run, all ranks together.

Each rank writes its own rows, rank 0 the dense weights and, once everything is on the disk, the
manifest; then a rename makes it a checkpoint. Knows tensors and files, nothing of models or of the
loop.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import BinaryIO, Callable

import numpy as np

from dlrm.checkpoint import directory as folder
from dlrm.checkpoint.manifest import DENSE_FILE, ROWS, Manifest, Position, tables_file
from dlrm.checkpoint.safetensors_file import Seal, TensorWriter, write_tensors
from dlrm.checkpoint.state import Run, State, Told, pieces, unheard
from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import local_rows

# The moments of a save, in order; tests end the process at each of them.
SAVE_POINTS = ("begun", "half of the rows", "rows", "manifest", "renamed", "older removed")


class Checkpoints:
    """Writes checkpoints into one folder, together with the other ranks.

    Args:
        directory: the folder, on a file system that all ranks share; made when missing.
        collective: the ranks.
        run: what to record.
        keep: so many of the newest stay.
        moved: told where in the work this rank is, before each piece of it.
        reached: told each of `SAVE_POINTS`.

    Raises:
        ValueError: on every rank: the folder cannot be used, or another run is using it.
    """

    def __init__(
        self,
        directory: Path,
        collective: Collective,
        run: Run,
        *,
        keep: int,
        moved: Told = unheard,
        reached: Told = unheard,
    ) -> None:
        self._directory = directory
        self._collective = collective
        self._run = run
        self._keep = keep
        self._moved, self._reached = moved, reached
        self._last_step = -1
        self._lock = collective.together(self._occupy)

    def save(self, state: State, position: Position) -> bool:
        """Writes a checkpoint, unless this step's was the last one written; whether it did.

        Raises:
            ValueError: on every rank, naming file and cause; checkpoints that are there stay.
        """
        if position.step == self._last_step:
            return False
        unfinished = folder.unfinished_path(self._directory, position.step)
        try:
            self._on_first_rank(lambda: self._begin(unfinished))
            self._reached("begun")
            seals = self._collective.together(lambda: self._write(state, position, unfinished))
            self._reached("rows")
            sums = self._collective.gather_text(
                json.dumps({name: seal.to_json() for name, seal in seals.items()})
            )
            self._on_first_rank(lambda: self._commit(unfinished, position, sums))
        except ValueError as error:
            with contextlib.suppress(ValueError):  # what is left is cleaned up later
                self._on_first_rank(lambda: folder.clean(self._directory))
            raise ValueError(
                f"the checkpoint of step {position.step} could not be written, those before it are "
                f"whole: {error}; make room there, or set another --checkpoint_dir"
            ) from None
        self._last_step = position.step
        try:
            self._on_first_rank(lambda: self._remove_older(position.step))
        except ValueError as error:
            raise ValueError(
                f"the checkpoint of step {position.step} is written, but an older one could not be "
                f"removed: {error}; correct that there, or set another --checkpoint_dir"
            ) from None
        self._reached("older removed")
        return True

    def loaded(self, path: Path) -> None:
        """Tells that the state is that of a checkpoint, which need not be written again here."""
        if path.parent.resolve() == self._directory.resolve():
            self._last_step = folder.step_of(path)

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        """Runs `action` on rank 0 while the others wait; all fail if it does."""
        self._collective.together(action if self._collective.rank == 0 else lambda: None)

    def _occupy(self) -> BinaryIO | None:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._collective.rank:
            return None
        lock = folder.lock(self._directory)
        folder.clean(self._directory)
        return lock

    def _begin(self, unfinished: Path) -> None:
        folder.clean(self._directory)
        unfinished.mkdir()

    def _write(self, state: State, position: Position, unfinished: Path) -> dict[str, Seal]:
        """Writes this rank's files; gives their seals by name."""
        if not unfinished.is_dir():
            raise ValueError(
                f"{unfinished}: made by rank 0, but not seen by rank {self._collective.rank}; set "
                "--checkpoint_dir to a folder on a file system that all ranks share"
            )
        seals = {}
        if self._collective.rank == 0:
            dense = {name: variable.numpy() for name, variable in state.dense.items()}
            seals[DENSE_FILE] = write_tensors(unfinished / DENSE_FILE, dense)
        rank, size = self._collective.rank, self._collective.size
        width, keys = self._run.model.embedding_dim, sum(self._run.model.vocab_sizes)
        rows, most = local_rows(keys, rank, size), local_rows(keys, 0, size)
        name = tables_file(rank, size)
        # A tensor of its own for each part of a stored row, one after the other.
        parts = {ROWS: width, **{columns.name: columns.width for columns in state.tables.state}}
        tensors = {part: (np.dtype("<f4"), (rows, columns)) for part, columns in parts.items()}
        with TensorWriter(unfinished / name, tensors) as writer:
            begin = 0
            for part, columns in parts.items():
                for first, last in pieces(most, sum(parts.values())):
                    self._moved(f"checkpoint of step {position.step}")
                    stored = state.tables.read_rows(first, min(last, rows))
                    writer.write(stored[:, begin : begin + columns])
                    if part == ROWS and first <= most // 2 < last:
                        self._reached("half of the rows")
                begin += columns
            seals[name] = writer.finish()
        return seals

    def _commit(self, unfinished: Path, position: Position, sums: list[str]) -> None:
        files = {
            name: Seal.from_json(entry) for text in sums for name, entry in json.loads(text).items()
        }
        run, size = self._run, self._collective.size
        Manifest(position, run.model, run.settings, run.data, size, files).write(unfinished)
        self._reached("manifest")
        folder.commit(unfinished)
        self._reached("renamed")

    def _remove_older(self, step: int) -> None:
        older = [path for path in folder.finished(self._directory) if folder.step_of(path) <= step]
        for path in older[: -self._keep]:
            folder.remove(path)
