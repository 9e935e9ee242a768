"""What each rank sends and receives in one step, counted key by key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.placement.placements import Placement

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """The exchange of one step under one placement.

    Attributes:
        keys: int64 [N, N]; keys that a rank (row) sends to an owner (column), itself included.
            Vectors travel the other way, gradients the same way.
        bottom: int64 [N, N]; vectors of the bottom MLP in the same form, which need no keys.
        rows: int64 [N]; distinct rows that each owner reads.
    """

    keys: Counts
    bottom: Counts
    rows: Counts

    @property
    def received(self) -> Counts:
        """Keys that each owner is asked for, int64 [N]."""
        return self.keys.sum(axis=0)

    def bytes_sent(self, key_bytes: int, vector_bytes: int) -> Counts:
        """Bytes that each rank sends to others in a step: keys, vectors and gradients, int64 [N].

        Args:
            key_bytes: Size of a key.
            vector_bytes: Size of a vector, and of its gradient, as they are exchanged.
        """
        asked = of_others(self.keys)
        carried = asked + of_others(self.bottom)
        keys = asked.sum(axis=1) * key_bytes
        return keys + (carried.sum(axis=0) + carried.sum(axis=1)) * vector_bytes


def of_others(counts: Counts) -> Counts:
    """The counts [N, N] without what a rank keeps for itself."""
    return counts - np.diag(np.diag(counts))


def greatest_over_mean(values: Counts) -> float:
    """How many times as much as the mean the most loaded rank has."""
    return float(values.max() / values.mean())


def count(
    batches: Iterable[NDArray[np.int64]], placements: Sequence[Placement], ranks: int, rows: int
) -> dict[tuple[str, bool], Exchange]:
    """Counts the exchange of one step for each placement, without and with `--compress`.

    Args:
        batches: The keys [samples, tables] of each rank's local batch, in the order of the ranks.
        placements: The placements.
        ranks: Number of ranks.
        rows: Number of rows of all tables.

    Returns:
        The exchange by the placement's name and whether each distinct key of a local batch is sent
        only once.
    """
    kinds = [(placement, compress) for placement in placements for compress in (False, True)]
    keys = {(p.name, compress): np.zeros((ranks, ranks), np.int64) for p, compress in kinds}
    bottom = {p.name: np.zeros((ranks, ranks), np.int64) for p in placements}
    touched = np.zeros(rows, bool)
    for rank, batch in enumerate(batches):
        distinct = np.unique(batch)
        touched[distinct] = True
        for placement, compress in kinds:
            owners = placement.owner_of(distinct if compress else batch.reshape(-1))
            keys[placement.name, compress][rank] = np.bincount(owners, minlength=ranks)
        for placement in placements:
            if placement.bottom_on is not None:
                bottom[placement.name][rank, placement.bottom_on] = len(batch)
    everything = np.flatnonzero(touched)
    read = {p.name: np.bincount(p.owner_of(everything), minlength=ranks) for p in placements}
    return {
        (name, compress): Exchange(sent, bottom[name], read[name])
        for (name, compress), sent in keys.items()
    }
