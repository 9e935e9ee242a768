"""Rows that other ranks wrote: shared out among the ranks that read, and sent to their owners."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.state import Tables, pieces
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective


class Piece(NamedTuple):
    """Rows [first, last) of the file that one of the writing ranks wrote."""

    rank: int
    first: int
    last: int


def rounds(reader: TableReader, collective: Collective) -> Iterator[Piece | None]:
    """This rank's share of all pieces, padded with None to the same number on every rank.

    The shares of as many ranks as wrote the checkpoint are their own files.
    """
    files = [
        [Piece(rank, *piece) for piece in pieces(reader.keys_of(rank), reader.width)]
        for rank in range(reader.ranks)
    ]
    if reader.ranks == collective.size:
        count, share = max(map(len, files)), files[collective.rank]
    else:
        everything = list(itertools.chain(*files))
        count = -(-len(everything) // collective.size)
        share = everything[collective.rank * count : (collective.rank + 1) * count]
    return (piece for piece, _ in itertools.zip_longest(share, range(count)))


def to_owners(
    keys: NDArray[np.int64], values: Sequence[NDArray[Any]], collective: Collective
) -> tuple[NDArray[Any], ...]:
    """Sends what belongs to keys to the ranks that own them.

    Args:
        keys: int64 [n].
        values: Arrays [n, ...].
        collective: The ranks.

    Returns:
        The keys that this rank owns, int64 [m], and their values [m, ...].
    """
    owner = sharding.owner_of(keys, collective.size)
    order = np.argsort(owner, kind="stable")
    splits = tf.constant(np.bincount(owner, minlength=collective.size), tf.int32)
    return tuple(
        collective.alltoall(tf.constant(tensor[order]), splits, name=f"restore.{number}")[0].numpy()
        for number, tensor in enumerate((keys, *values))
    )


def with_state(
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
