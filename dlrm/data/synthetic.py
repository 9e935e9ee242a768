"""Synthetic samples, computed when they are read: sample i depends on the seed and i alone.

Hence any number of ranks sees the same data, and nothing is stored. Ids are uniform over each
table, dense values uniform in [0, 1), and labels fair coin flips: the samples serve to measure
speed and contain nothing to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm.data.batch import Samples
from dlrm.formats import splitmix64
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

    Attributes:
        num_samples: Number of samples.
        num_dense: Number of dense columns.
        vocab_sizes: Number of rows of each table.
        fingerprint: Everything that the samples depend on.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self, vocab_sizes: Sequence[int], num_dense: int, num_samples: int, seed: int
    ) -> None:
        self.vocab_sizes = tuple(vocab_sizes)
        check_vocab_sizes(self.vocab_sizes)
        check_num_dense(num_dense)
        if num_samples < 1:
            raise ValueError(f"num_samples: expected a positive integer, found {num_samples}")
        self.num_dense = num_dense
        self.num_samples = num_samples
        columns = 1 + num_dense + len(self.vocab_sizes)
        # Each seed and column starts a separate stream at a hashed, hence unrelated, state.
        origin = splitmix64.hashed(np.array([seed % 2**64], np.uint64))
        numbers: NDArray[np.uint64] = np.arange(columns, dtype=np.uint64)
        self._streams = splitmix64.hashed(splitmix64.hashed(origin + numbers) ^ origin)
        self._sizes = np.array(self.vocab_sizes, np.uint64)
        self.fingerprint = f"synthetic:{num_samples}x{num_dense}+{len(self.vocab_sizes)}:{seed}"

    def read(self, start: int, stop: int) -> Samples:
        """Computes samples [start, stop); see `Source`."""
        check_range(start, stop, self.num_samples)
        count = stop - start
        tables = 1 + self.num_dense  # first column of ids
        dense = np.empty((count, self.num_dense), np.float32)
        ids = np.empty((count, len(self.vocab_sizes)), np.int32)
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
        return dense, ids, labels
