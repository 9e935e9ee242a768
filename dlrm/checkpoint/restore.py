"""Restores the state of a run from a checkpoint, all ranks together.

Any number of ranks can read what any other number wrote. Works on tensors and files, independent of
models and of the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import DENSE_FILE, Manifest, is_weight
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.checkpoint.state import MisfitError, State, Tables, TextCallback, ignore, pieces
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective


class Piece(NamedTuple):
    """Rows [first, last) of the file that one of the writing ranks wrote."""

    rank: int
    first: int
    last: int


def restore(
    path: Path,
    manifest: Manifest,
    state: State,
    collective: Collective,
    on_progress: TextCallback = ignore,
    *,
    vocab_sizes: Sequence[int] | None = None,
    ignore_optimizer_change: bool = False,
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
        vocab_sizes: Number of rows of each of the run's tables, no fewer than in the checkpoint;
            None if they are the same.
        ignore_optimizer_change: Whether to accept the checkpoint of another optimizer. What it
            lacks of this one's state begins anew; what it has of its own is left out.

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
        _check_optimizer(path, "the tables", widths, found)
        if dense:
            _check_optimizer(path, "the dense layers", state.dense, dense)
    widths = {name: width for name, width in widths.items() if name in found}
    for name, variable in state.dense.items():
        if name in dense:
            variable.assign(dense[name])
        else:
            assert not dense or not is_weight(name), f"{path}: a model of this shape has {name}"
    before = manifest.model.vocab_sizes
    after = before if vocab_sizes is None else tuple(vocab_sizes)
    with TableReader(path, manifest, widths) as reader:
        if reader.ranks == collective.size and after == before:
            collective.together(
                lambda: _read_own(reader, state.tables, collective.rank, on_progress)
            )
            return
        for piece in _rounds(reader, collective):
            on_progress(activity)
            keys, values = collective.together(partial(_read_piece, reader, piece))
            keys = sharding.moved_keys(keys, before, after)
            keys, values = _to_owners(keys, values, collective)
            rows = sharding.local_row_of(keys, collective.size)
            state.tables.write_rows(rows, _with_state(values, reader, state.tables))


def _state_of_rows(path: Path, manifest: Manifest) -> dict[str, int]:
    with TableReader(path, manifest) as reader:
        return reader.state_in_files()


def _with_state(
    values: NDArray[np.float32], reader: TableReader, tables: Tables
) -> NDArray[np.float32]:
    """Rows [n, width] as read, with the first values of the state that the reader does not read."""
    if all(columns.name in reader.state for columns in tables.state):
        return values
    begin = reader.width - sum(reader.state.values())
    parts = [values[:, :begin]]
    for columns in tables.state:
        if columns.name in reader.state:
            parts.append(values[:, begin : begin + columns.width])
            begin += columns.width
        else:
            parts.append(np.full((len(values), columns.width), columns.initial, np.float32))
    return np.concatenate(parts, axis=1)


def _read_dense(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    if DENSE_FILE not in manifest.files:  # tables alone, from elsewhere
        return {}
    with TensorReader(path / DENSE_FILE, manifest.files[DENSE_FILE]) as reader:
        return {name: reader.read(name) for name in reader.tensors}


def _check_optimizer(
    path: Path, part: str, expected: Mapping[str, Any], found: Mapping[str, Any]
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
        raise MisfitError(
            f"{path}: a checkpoint of another optimizer: for {part} expected {missing}, found "
            f"{others} in its place; resume with the optimizer that wrote it, set "
            "--ignore_optimizer_change to begin its state anew, or set another --checkpoint_dir"
        )


def _read_own(reader: TableReader, tables: Tables, rank: int, on_progress: TextCallback) -> None:
    """Reads this rank's own file, which holds exactly its rows in order."""
    for first, last in pieces(reader.rows_of(0), reader.width):
        on_progress("reading the checkpoint")
        rows = np.arange(first, min(last, reader.rows_of(rank)))
        values = reader.read_rows(rank, first, first + len(rows))
        tables.write_rows(rows, _with_state(values, reader, tables))


def _rounds(reader: TableReader, collective: Collective) -> Iterator[Piece | None]:
    """This rank's share of all pieces, padded with None to the same number on every rank."""
    everything = [
        Piece(rank, first, last)
        for rank in range(reader.ranks)
        for first, last in pieces(reader.rows_of(rank), reader.width)
    ]
    rounds = -(-len(everything) // collective.size)
    share = everything[collective.rank * rounds : (collective.rank + 1) * rounds]
    return (piece for piece, _ in itertools.zip_longest(share, range(rounds)))


def _read_piece(
    reader: TableReader, piece: Piece | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Keys int64 [n] and their rows float32 [n, width]."""
    if piece is None:
        return np.empty(0, np.int64), np.empty((0, reader.width), np.float32)
    rows = np.arange(piece.first, piece.last, dtype=np.int64)
    keys = sharding.key_of(rows, piece.rank, reader.ranks)
    return keys, reader.read_rows(*piece)


def _to_owners(
    keys: NDArray[np.int64], values: NDArray[np.float32], collective: Collective
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sends each row to the rank that owns its key, and returns the rows that this rank owns.

    Args:
        keys: int64 [n].
        values: float32 [n, width].
        collective: The ranks.

    Returns:
        Keys int64 [m] and rows float32 [m, width].
    """
    owner = sharding.owner_of(keys, collective.size)
    order = np.argsort(owner, kind="stable")
    splits = tf.constant(np.bincount(owner, minlength=collective.size), tf.int32)
    keys_here, _ = collective.alltoall(tf.constant(keys[order]), splits, name="restore.keys")
    values_here, _ = collective.alltoall(tf.constant(values[order]), splits, name="restore.rows")
    return keys_here.numpy(), values_here.numpy()
