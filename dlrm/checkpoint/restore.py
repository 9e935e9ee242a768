"""Restores the state of a run from a checkpoint, all ranks together.

Any number of ranks can read what any other number wrote. Works on tensors and files, independent of
models and of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.dynamic_rows import restore_dynamic
from dlrm.checkpoint.manifest import DENSE_FILE, Manifest, is_weight
from dlrm.checkpoint.reshard import Piece, rounds, to_owners, with_state
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.checkpoint.state import MisfitError, State, Tables, TextCallback, ignore, pieces
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective


def restore(
    path: Path,
    manifest: Manifest,
    state: State,
    collective: Collective,
    on_progress: TextCallback = ignore,
    *,
    vocab_sizes: Sequence[int] | None = None,
    ignore_optimizer_change: bool | None = None,
) -> None:
    """Overwrites the state with a checkpoint's, which must be of the same model.

    Every byte is read and checked exactly once. If tables and number of ranks are those of the
    writing run, each rank reads its own file. Otherwise each reads an equal part and sends the rows
    to the ranks that own them. Rows that only the run has stay as they are.

    Args:
        path: The checkpoint.
        manifest: The checkpoint's manifest.
        state: The state to overwrite.
        collective: The ranks.
        on_progress: Called before each piece of work, with what it is.
        vocab_sizes: For a run whose steps begin anew, the number of rows of each of its tables, no
            fewer than in the checkpoint; None for one that goes on with the same.
        ignore_optimizer_change: Whether to accept the checkpoint of another optimizer. What it
            lacks of this one's state begins anew; what it has of its own is left out. None for a
            run that has no flag for it.

    Raises:
        MisfitError: The checkpoint was written by another optimizer. Raised on every rank.
        ValueError: A file is missing or damaged; the message names it and the offset. Raised on
            every rank.
    """
    activity = f"reading the checkpoint of step {manifest.position.step}"
    widths = {columns.name: columns.width for columns in state.tables.state}
    dense = collective.together(lambda: _read_dense(path, manifest))
    found = collective.together(lambda: _state_of_rows(path, manifest))
    if not ignore_optimizer_change:
        may_ignore = ignore_optimizer_change is not None
        _check_optimizer(path, "the tables", widths, found, may_ignore)
        if dense:
            _check_optimizer(path, "the dense layers", state.dense, dense, may_ignore)
    widths = {name: width for name, width in widths.items() if name in found}
    for name, variable in state.dense.items():
        if name in dense:
            variable.assign(dense[name])
        else:
            assert not dense or not is_weight(name), f"{path}: a model of this shape has {name}"
    before = manifest.model.vocab_sizes
    after = before if vocab_sizes is None else tuple(vocab_sizes)
    with TableReader(path, manifest, widths) as reader:
        if state.tables.dynamic is not None:
            restore_dynamic(
                reader,
                state.tables,
                collective,
                partial(on_progress, activity),
                moved=lambda keys: sharding.moved_keys(keys, before, after),
                past_steps=0 if vocab_sizes is None else manifest.position.step,
            )
            return
        if reader.ranks == collective.size and after == before:
            collective.together(
                lambda: _read_own(reader, state.tables, collective.rank, on_progress)
            )
            return
        for piece in rounds(reader, collective):
            on_progress(activity)
            keys, values = collective.together(partial(_read_piece, reader, piece))
            keys = sharding.moved_keys(keys, before, after)
            own, stored = to_owners(keys, [values], collective)
            rows = sharding.local_row_of(own, collective.size)
            state.tables.write_rows(rows, with_state(stored, reader, state.tables))


def _state_of_rows(path: Path, manifest: Manifest) -> dict[str, int]:
    with TableReader(path, manifest) as reader:
        return reader.state_in_files()


def _read_dense(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    if DENSE_FILE not in manifest.files:  # tables alone, from elsewhere
        return {}
    with TensorReader(path / DENSE_FILE, manifest.files[DENSE_FILE]) as reader:
        return {name: reader.read(name) for name in reader.tensors}


def _check_optimizer(
    path: Path, part: str, expected: Mapping[str, Any], found: Mapping[str, Any], may_ignore: bool
) -> None:
    """Refuses a checkpoint that lacks state of this run's optimizer, or has another's.

    Raises:
        MisfitError: The names differ.
    """
    if expected.keys() != found.keys():
        missing, others = (
            ", ".join(sorted(names)) or "nothing"
            for names in (expected.keys() - found.keys(), found.keys() - expected.keys())
        )
        flag = "set --ignore_optimizer_change to begin its state anew, " if may_ignore else ""
        raise MisfitError(
            f"{path}: a checkpoint of another optimizer: for {part} expected {missing}, found "
            f"{others} in its place; resume with the optimizer that wrote it, {flag}or set another "
            "--checkpoint_dir"
        )


def _read_own(reader: TableReader, tables: Tables, rank: int, on_progress: TextCallback) -> None:
    """Reads this rank's own file, which holds exactly its rows in order."""
    for first, last in pieces(reader.rows_of(0), reader.width):
        on_progress("reading the checkpoint")
        rows = np.arange(first, min(last, reader.rows_of(rank)))
        values = reader.read_rows(rank, first, first + len(rows))
        tables.write_rows(rows, with_state(values, reader, tables))


def _read_piece(
    reader: TableReader, piece: Piece | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Keys int64 [n] and their rows float32 [n, width]."""
    if piece is None:
        return np.empty(0, np.int64), np.empty((0, reader.width), np.float32)
    rows = np.arange(piece.first, piece.last, dtype=np.int64)
    keys = sharding.key_of(rows, piece.rank, reader.ranks)
    return keys, reader.read_rows(*piece)
