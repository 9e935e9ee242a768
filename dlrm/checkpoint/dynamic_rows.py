"""The rows of ids that occurred, in the files of a checkpoint.

A file of dynamic tables names the key of each row. It holds, too, what is known of keys that have
no row yet, and the rows that these share. Any number of ranks can read what any other wrote.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.reshard import Piece, rounds, to_owners, with_state
from dlrm.checkpoint.state import Tables
from dlrm.checkpoint.table_reader import COUNTS, KEYS, SHARED, TableReader
from dlrm.distributed.collective import Collective
from dlrm.embedding.row_storage import OccurringRows, Sightings


def key_tensors(storage: OccurringRows, sightings: Sightings) -> dict[str, NDArray[Any]]:
    """What a file holds before its rows, by the name of the tensor."""
    return {KEYS: sightings.keys, COUNTS: sightings.counts, SHARED: storage.read_shared()}


def restore_dynamic(
    reader: TableReader,
    tables: Tables,
    collective: Collective,
    on_progress: Callable[[], None],
    *,
    moved: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    past_steps: int,
) -> None:
    """Overwrites dynamic tables with those of a checkpoint, all ranks together.

    Args:
        reader: Reads the checkpoint.
        tables: This rank's rows.
        collective: The ranks.
        on_progress: Called before each piece of work.
        moved: Turns the checkpoint's keys into those of this run.
        past_steps: Number of the checkpoint's steps that lie before this run's first.

    Raises:
        ValueError: A file is missing or damaged. Raised on every rank.
    """
    storage = tables.dynamic
    assert storage is not None, "tables with a row for every id"
    storage.clear()
    shared = collective.together(lambda: reader.read(0, SHARED))
    if shared.shape == (storage.shared, storage.layout.width):
        storage.write_shared(shared)
    for piece in rounds(reader, collective):
        on_progress()
        keys, counts, values = collective.together(partial(_read_piece, reader, piece))
        keys, rows = moved(keys), len(values)
        if past_steps:
            # A batch that was routed already but not trained on is none of this run's.
            counts = np.stack([counts[:, 0], np.minimum(counts[:, 1] - past_steps, 0)], axis=1)
        for with_row in (True, False):
            part = slice(0, rows) if with_row else slice(rows, None)
            others = [counts[part], *([values] if with_row else [])]
            found = to_owners(keys[part], others, collective)
            stored = with_state(found[2] if with_row else values[:0], reader, tables)
            storage.put(Sightings(found[0], found[1], len(stored)), stored)


def _read_piece(
    reader: TableReader, piece: Piece | None
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Keys [n], counts [n, 2] and the rows [m, width] that the first m of the keys have."""
    if piece is None:
        return np.empty(0, np.int64), np.empty((0, 2), np.int32), np.empty((0, reader.width), "f4")
    rank, first, last = piece
    rows = reader.rows_of(rank)
    return (
        reader.read(rank, KEYS, first, last),
        reader.read(rank, COUNTS, first, last),
        reader.read_rows(rank, min(first, rows), min(last, rows)),
    )
