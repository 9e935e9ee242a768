"""Cuts a source into one rank's batches, which threads read ahead of their use.

Every rank takes the same number of steps, whatever the number of samples. Where the samples come
from is the source's concern.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.data.batch import Batch, Ids, Samples, Source
from dlrm.data.batch_order import batch_order
from dlrm.data.read_ahead import read_ahead
from dlrm.formats.bags import BagLayout, Bags


class Batches:
    """The batches of one rank; each iteration is the same epoch from the start.

    Global batch s covers samples [s * G, (s + 1) * G); rank r takes the contiguous block
    [s * G + r * L, s * G + (r + 1) * L), where L = G / size. In evaluation the last global batch is
    cut the same way and padded with zeros, so that a rank's share of it may be empty. Nothing is
    read before an iteration begins.

    Args:
        source: Where the samples come from.
        global_batch: Number of samples of a step, over all ranks.
        rank: This process's number, from 0.
        size: Number of ranks.
        drop_remainder: Whether the last, incomplete global batch is left out (training) or padded
            (evaluation).
        lookahead: Number of batches that are read before they are used.
        readers: Number of threads that read; each reads whole batches.
        subset: Fraction of the steps that an epoch takes, the first ones; rounded up.
        order_seed: Seed of the order of the batches, another one in each epoch; None takes them as
            they come.
        size_flag: The flag that sets `global_batch`, for messages.

    Attributes:
        steps: Number of steps of the whole epoch.
        local_batch: Number of samples of a step on this rank.
        num_samples: Number of samples of the source, whole batches or not; of a subset, those in
            its steps.

    Raises:
        ValueError: The ranks do not divide the global batch, the data is smaller than one global
            batch of training, or an argument is out of range.
    """

    def __init__(
        self,
        source: Source,
        global_batch: int,
        rank: int,
        size: int,
        *,
        drop_remainder: bool,
        lookahead: int = 2,
        readers: int = 1,
        subset: float = 1.0,
        order_seed: int | None = None,
        size_flag: str = "--global_batch_size",
    ) -> None:
        if size < 1 or not 0 <= rank < size:
            raise ValueError(f"expected a rank from 0 to {size - 1}, found {rank}")
        if global_batch < 1 or global_batch % size:
            nearest = max(1, round(global_batch / size)) * size
            raise ValueError(
                f"global batch: expected a positive multiple of the {size} ranks, found "
                f"{global_batch}; set {size_flag}={nearest}"
            )
        if source.num_samples < 1:
            raise ValueError("expected at least one sample, found none; give other data")
        if drop_remainder and source.num_samples < global_batch:
            raise ValueError(
                f"global batch: expected at most the {source.num_samples} training samples, found "
                f"{global_batch}; lower {size_flag}"
            )
        full, rest = divmod(source.num_samples, global_batch)
        self.steps = math.ceil(subset * (full if drop_remainder or not rest else full + 1))
        if lookahead < 0 or readers < 1:
            raise ValueError(f"expected lookahead >= 0, readers >= 1, found {lookahead}, {readers}")
        self.local_batch = global_batch // size
        self.num_samples = source.num_samples
        if subset < 1:
            self.num_samples = min(source.num_samples, self.steps * global_batch)
        self._source = source
        self._global_batch = global_batch
        self._rank = rank
        self._first_step = 0
        self._order_seed = order_seed
        self._epoch = 0
        self._lookahead = lookahead
        self._readers = readers

    def in_epoch(self, epoch: int) -> Batches:
        """Returns the batches of another epoch, from 0: the same ones, maybe in another order."""
        other = copy.copy(self)
        other._epoch = epoch
        return other

    def starting_at(self, first_step: int) -> Batches:
        """Returns the same epoch from one of its steps on, for a resumed run.

        Raises:
            ValueError: The epoch has no such step.
        """
        if not 0 <= first_step <= self.steps:
            raise ValueError(
                f"first step: expected 0 to {self.steps}, the steps of an epoch, found "
                f"{first_step}; resume with the data and global batch of the first run"
            )
        rest = copy.copy(self)
        rest._first_step = first_step
        return rest

    def __len__(self) -> int:
        """Number of batches that an iteration yields."""
        return self.steps - self._first_step

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields the batches; errors of reading are raised here, in the consumer's thread."""
        steps: Sequence[int] = range(self.steps)
        if self._order_seed is not None:
            steps = batch_order(self.steps, self._order_seed, self._epoch)
        rest = steps[self._first_step :]
        return read_ahead(self._read, rest, lookahead=self._lookahead, readers=self._readers)

    def _read(self, step: int) -> Batch:
        """Reads this rank's share of a global batch, padded with zeros to the local batch."""
        total = self._source.num_samples
        start = step * self._global_batch + self._rank * self.local_batch
        stop = min(start + self.local_batch, total)
        valid = max(0, stop - start)
        if valid == self.local_batch:
            return Batch(*self._source.read(start, stop), valid, start)
        dense, ids, labels = self._source.read(start, stop) if valid else self._nothing()
        padding = self.local_batch - valid
        return Batch(
            _padded(dense, padding), pad_ids(ids, padding), _padded(labels, padding), valid, start
        )

    def _nothing(self) -> Samples:
        """No samples, as the source would return them."""
        tables, ids = len(self._source.vocab_sizes), np.empty(0, np.int32)
        bags = Bags(ids, np.empty((tables, 0), np.int32), np.empty(0, np.float32))
        return (
            np.empty((0, self._source.num_dense), np.float32),
            bags if self._source.bag_layout else ids.reshape(0, tables),
            np.empty(0, np.float32),
        )


def pad_ids(ids: Ids, samples: int) -> Ids:
    """Appends samples of ids 0, or of empty bags."""
    if isinstance(ids, Bags):
        return ids._replace(lengths=np.pad(ids.lengths, [(0, 0), (0, samples)]))
    return _padded(ids, samples)


def _padded(values: NDArray[Any], samples: int) -> NDArray[Any]:
    """Appends rows of zeros."""
    return np.pad(values, [(0, samples)] + [(0, 0)] * (values.ndim - 1))


class Data(NamedTuple):
    """The data of a run as one rank sees it.

    Attributes:
        train: This rank's batches of one epoch.
        test: This rank's batches of one evaluation.
        num_dense: Number of dense features of a sample.
        vocab_sizes: Number of rows of each embedding table.
        fingerprints: Fingerprint of each part of the data, keyed by its name.
        notes: Remarks of the check of the data's content, one line each.
        bag_layout: How bags of ids are pooled; None if every table has one id for each sample.
    """

    train: Batches
    test: Batches
    num_dense: int
    vocab_sizes: tuple[int, ...]
    fingerprints: Mapping[str, str]
    notes: Sequence[str] = ()
    bag_layout: BagLayout | None = None
