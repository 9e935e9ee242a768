"""Saves the state of a run, all ranks together.

Each rank writes its own rows, rank 0 the dense weights and, once everything is on the disk, the
manifest; then a rename makes it a checkpoint. Works on tensors and files, independent of models and
of the loop.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import BinaryIO, Callable

import numpy as np

from dlrm.checkpoint import directory
from dlrm.checkpoint.dynamic_rows import key_tensors
from dlrm.checkpoint.manifest import DENSE_FILE, ROWS, Manifest, Position, tables_file
from dlrm.checkpoint.safetensors_file import FileDigest, TensorWriter, write_tensors
from dlrm.checkpoint.state import RunRecord, State, TextCallback, ignore, pieces
from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import local_rows

# The moments of a save, in order; tests end the process at each of them.
SAVE_POINTS = ("begun", "half of the rows", "rows", "manifest", "renamed", "older removed")


class Checkpoints:
    """Writes checkpoints into one directory, together with the other ranks.

    Args:
        checkpoint_dir: The directory, on a file system that all ranks share; created if missing.
        collective: The ranks.
        run: What the checkpoints record of the run.
        keep: Number of most recent checkpoints to keep.
        on_progress: Called before each piece of work, with what it is.
        on_save_point: Called with each of `SAVE_POINTS` in turn.

    Raises:
        ValueError: The directory cannot be used, or another run is using it. Raised on every rank.
    """

    def __init__(
        self,
        checkpoint_dir: Path,
        collective: Collective,
        run: RunRecord,
        *,
        keep: int,
        on_progress: TextCallback = ignore,
        on_save_point: TextCallback = ignore,
    ) -> None:
        self._checkpoint_dir = checkpoint_dir
        self._collective = collective
        self._run = run
        self._keep = keep
        self._on_progress, self._on_save_point = on_progress, on_save_point
        self._last_step = -1
        self._lock = collective.together(self._lock_directory)

    def save(self, state: State, position: Position) -> bool:
        """Writes a checkpoint, unless the last one written is of this step already.

        Returns:
            Whether a checkpoint was written.

        Raises:
            ValueError: It cannot be written; the message names the file and the cause. Earlier
                checkpoints stay. Raised on every rank.
        """
        if position.step == self._last_step:
            return False
        unfinished = directory.unfinished_path(self._checkpoint_dir, position.step)
        try:
            self._on_first_rank(lambda: self._begin(unfinished))
            self._on_save_point("begun")
            digests = self._collective.together(lambda: self._write(state, position, unfinished))
            self._on_save_point("rows")
            gathered = self._collective.gather_text(
                json.dumps({name: digest.to_json() for name, digest in digests.items()})
            )
            self._on_first_rank(lambda: self._commit(unfinished, position, gathered))
        except ValueError as error:
            with contextlib.suppress(ValueError):  # what is left is cleaned up later
                self._on_first_rank(lambda: directory.clean(self._checkpoint_dir))
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
        self._on_save_point("older removed")
        return True

    def loaded(self, path: Path) -> None:
        """Notes that the state equals a checkpoint, which then need not be written again."""
        if path.parent.resolve() == self._checkpoint_dir.resolve():
            self._last_step = directory.step_of(path)

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        """Runs `action` on rank 0 while the others wait; all fail if it does."""
        self._collective.together(action if self._collective.rank == 0 else lambda: None)

    def _lock_directory(self) -> BinaryIO | None:
        self._checkpoint_dir.mkdir(parents=True, exist_ok=True)
        if self._collective.rank:
            return None
        lock = directory.lock(self._checkpoint_dir)
        directory.clean(self._checkpoint_dir)
        return lock

    def _begin(self, unfinished: Path) -> None:
        directory.clean(self._checkpoint_dir)
        unfinished.mkdir()

    def _write(self, state: State, position: Position, unfinished: Path) -> dict[str, FileDigest]:
        """Writes this rank's files and returns their digests by name."""
        if not unfinished.is_dir():
            raise ValueError(
                f"{unfinished}: made by rank 0, but not seen by rank {self._collective.rank}; set "
                "--checkpoint_dir to a folder on a file system that all ranks share"
            )
        digests = {}
        if self._collective.rank == 0:
            dense = {name: variable.numpy() for name, variable in state.dense.items()}
            digests[DENSE_FILE] = write_tensors(unfinished / DENSE_FILE, dense)
        rank, size = self._collective.rank, self._collective.size
        width, keys = self._run.model.embedding_dim, sum(self._run.model.vocab_sizes)
        rows, most = local_rows(keys, rank, size), local_rows(keys, 0, size)
        first_tensors = {}
        if (dynamic := state.tables.dynamic) is not None:
            sightings = dynamic.sightings()
            rows = most = sightings.rows
            first_tensors = key_tensors(dynamic, sightings)
        name = tables_file(rank, size)
        # A separate tensor for each part of a stored row, one after the other.
        parts = {ROWS: width, **{columns.name: columns.width for columns in state.tables.state}}
        tensors = {part: (np.dtype("<f4"), (rows, columns)) for part, columns in parts.items()}
        specs = {part: (values.dtype, values.shape) for part, values in first_tensors.items()}
        with TensorWriter(unfinished / name, {**specs, **tensors}) as writer:
            for values in first_tensors.values():
                writer.write(values)
            begin = 0
            for part, columns in parts.items():
                for first, last in pieces(most, sum(parts.values())):
                    self._on_progress(f"checkpoint of step {position.step}")
                    stored = state.tables.read_rows(first, min(last, rows))
                    writer.write(stored[:, begin : begin + columns])
                    if part == ROWS and first <= most // 2 < last:
                        self._on_save_point("half of the rows")
                begin += columns
            digests[name] = writer.finish()
        return digests

    def _commit(self, unfinished: Path, position: Position, digests: list[str]) -> None:
        files = {
            name: FileDigest.from_json(entry)
            for text in digests
            for name, entry in json.loads(text).items()
        }
        run, size = self._run, self._collective.size
        Manifest(position, run.model, run.settings, dict(run.data), size, files).write(unfinished)
        self._on_save_point("manifest")
        directory.commit(unfinished)
        self._on_save_point("renamed")

    def _remove_older(self, step: int) -> None:
        finished = directory.finished(self._checkpoint_dir)
        upto = [path for path in finished if directory.step_of(path) <= step]
        for path in upto[: -self._keep]:
            directory.remove(path)
