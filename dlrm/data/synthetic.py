"""Synthetic samples, computed when they are read: sample i depends on the seed and i alone.

Hence any number of ranks sees the same data, and nothing is stored. Ids are uniform over each
table, dense values uniform in [0, 1), and labels fair coin flips: the samples serve to measure
speed and contain nothing to learn. With `hotness`, a sample has as many ids of each table as that
says, pooled by their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm.data.batch import Samples
from dlrm.formats import splitmix64
from dlrm.formats.bags import BagLayout, Bags, BagTable
from dlrm.formats.column_file import check_range
from dlrm.formats.metadata import check_num_dense, check_vocab_sizes

# Samples in a block: their 64-bit words stay in the second-level cache.
_BLOCK_SAMPLES = 1024

_GAMMA = np.uint64(splitmix64.GAMMA)


class SyntheticSource:
    """Computes uniform random samples.

    Args:
        vocab_sizes: Number of rows of each table.
        num_dense: Number of dense columns.
        num_samples: Number of samples.
        seed: Any integer; another seed gives other samples.
        hotness: Number of ids in each table's bags; empty for one id in each table and no bags.

    Attributes:
        num_samples: Number of samples.
        num_dense: Number of dense columns.
        vocab_sizes: Number of rows of each table.
        bags: The tables with bags: with `hotness`, those of more than one id.
        bag_layout: How bags of ids are pooled; None if every table has one id for each sample.
        fingerprint: Everything that the samples depend on.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        vocab_sizes: Sequence[int],
        num_dense: int,
        num_samples: int,
        seed: int,
        hotness: Sequence[int] = (),
    ) -> None:
        self.vocab_sizes = tuple(vocab_sizes)
        check_vocab_sizes(self.vocab_sizes)
        check_num_dense(num_dense)
        if num_samples < 1:
            raise ValueError(f"num_samples: expected a positive integer, found {num_samples}")
        self.num_dense = num_dense
        self.num_samples = num_samples
        counts = list(hotness) or [1] * len(self.vocab_sizes)
        if len(counts) != len(self.vocab_sizes) or min(counts) < 1:
            raise ValueError(
                f"hotness: expected an integer from 1 for each of {len(self.vocab_sizes)} tables, "
                f"found {counts}"
            )
        self.bags = tuple(
            BagTable(table, "sum", count) for table, count in enumerate(counts) if count > 1
        )
        self.bag_layout: BagLayout | None = None
        if self.bags:
            means = [float(bag.max_ids) for bag in self.bags]
            self.bag_layout = BagLayout.of(len(counts), self.bags, means)
        self._ends = np.cumsum(counts)  # of each table's columns
        columns = 1 + num_dense + sum(counts)
        # Each seed and column starts a separate stream at a hashed, hence unrelated, state.
        origin = splitmix64.hashed(np.array([seed % 2**64], np.uint64))
        numbers: NDArray[np.uint64] = np.arange(columns, dtype=np.uint64)
        self._streams = splitmix64.hashed(splitmix64.hashed(origin + numbers) ^ origin)
        self._sizes = np.repeat(np.array(self.vocab_sizes, np.uint64), counts)
        self.fingerprint = f"synthetic:{num_samples}x{num_dense}+{len(self.vocab_sizes)}:{seed}"
        if self.bags:
            self.fingerprint += f":hotness {','.join(map(str, counts))}"

    def read(self, start: int, stop: int) -> Samples:
        """Computes samples [start, stop); see `Source`."""
        check_range(start, stop, self.num_samples)
        count = stop - start
        tables = 1 + self.num_dense  # first column of ids
        dense = np.empty((count, self.num_dense), np.float32)
        ids = np.empty((count, len(self._sizes)), np.int32)
        labels = np.empty(count, np.float32)
        words = np.empty((min(count, _BLOCK_SAMPLES), len(self._streams)), np.uint64)
        scratch = np.empty_like(words)
        for first in range(0, count, _BLOCK_SAMPLES):
            last = min(first + _BLOCK_SAMPLES, count)
            block, other = words[: last - first], scratch[: last - first]
            numbers = np.arange(start + first, start + last, dtype=np.uint64)[:, None]
            np.add(numbers * _GAMMA, self._streams, out=block)
            splitmix64.mix(block, other)
            labels[first:last] = block[:, 0] >> np.uint64(63)
            # The upper 32 bits of a word are a fraction of one.
            block >>= np.uint64(32)
            # 24 bits are what a float32 holds exactly, so the result stays below one.
            fractions = dense[first:last]
            np.copyto(fractions, block[:, 1:tables] >> np.uint64(8), casting="unsafe")
            fractions *= np.float32(2**-24)
            scaled = other[:, tables:]
            np.multiply(block[:, tables:], self._sizes, out=scaled)
            scaled >>= np.uint64(32)
            np.copyto(ids[first:last], scaled, casting="unsafe")
        return dense, ids if self.bag_layout is None else self._in_bags(ids), labels

    def _in_bags(self, ids: NDArray[np.int32]) -> Bags:
        """Puts ids, int32 [samples, columns of all tables], into the order of `Bags`."""
        tables = np.split(ids, self._ends[:-1], axis=1)
        lengths = [np.full(len(ids), table.shape[1], np.int32) for table in tables]
        joined = np.concatenate([table.ravel() for table in tables])
        return Bags(joined, np.stack(lengths), np.empty(0, np.float32))
