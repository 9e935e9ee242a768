"""Key streams as skewed as Criteo's: each table's ids follow a power law.

An id x in 0 .. V - 1 has the probability of the interval [x + 1, x + 2) under the density
proportional to t^-s on [1, V + 1). Ids are thus numbered by how often they occur, which is nearly
what dictionaries in order of first appearance do.

The exponents s were found by `benchmarks.placement.fit` in the public sample of 1,999 rows of
Criteo Kaggle: under its exponent, a table of the published size shows as many distinct values in
1,999 draws as that column does. In the large tables, which decide how much `--compress` saves, the
law then also agrees with what it was not fitted to: the distinct values in half of the rows, within
5 %, and the share of the ten most frequent ones, within a fifth of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm.distributed.sharding import key_offsets

# From Kaggle's largest table to its smallest; 4 is the steepest that was tried.
EXPONENTS = (
    1.044, 1.057, 1.065, 1.075, 1.100, 1.189, 1.265, 1.098, 1.077, 0.898, 0.950, 1.199, 0.944,
    1.551, 1.985, 2.428, 1.339, 2.634, 2.522, 2.833, 4.000, 4.000, 3.445, 3.766, 0.000, 4.000,
)  # fmt: skip
BLOCK = 8192  # samples that are drawn together


class PowerLaw:
    """The ids of one table.

    Args:
        rows: Number of rows of the table.
        exponent: The exponent s.
    """

    def __init__(self, rows: int, exponent: float) -> None:
        self.rows, self.exponent = rows, exponent

    def ids(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """The ids at the given quantiles, each in [0, 1)."""
        end, power = self.rows + 1, 1 - self.exponent
        if abs(power) < 1e-9:
            position = end**uniform
        else:
            position = (1 + uniform * (end**power - 1)) ** (1 / power)
        # Rounding may reach the end itself.
        return np.minimum(position.astype(np.int64) - 1, self.rows - 1)

    def probabilities(self, first: int, last: int) -> NDArray[np.float64]:
        """The probabilities of the ids first .. last - 1."""
        edges = np.arange(first + 1, last + 2, dtype=np.float64)
        end, power = float(self.rows + 1), 1 - self.exponent
        if abs(power) < 1e-9:
            return np.diff(np.log(edges) / np.log(end))
        return np.diff((edges**power - 1) / (end**power - 1))


def exponents(vocab_sizes: Sequence[int]) -> list[float]:
    """The exponent of each table: that of Kaggle's table of the same place by size.

    Raises:
        ValueError: There are not as many tables as in Criteo's logs.
    """
    if len(vocab_sizes) != len(EXPONENTS):
        raise ValueError(f"expected {len(EXPONENTS)} tables, found {len(vocab_sizes)}")
    by_size = sorted(range(len(vocab_sizes)), key=lambda table: -vocab_sizes[table])
    found = [0.0] * len(vocab_sizes)
    for table, exponent in zip(by_size, EXPONENTS):
        found[table] = exponent
    return found


class KeyStream:
    """An endless stream of samples' keys, drawn in blocks: block i depends on the seed and i alone.

    Args:
        vocab_sizes: Number of rows of each table.
        seed: Another seed gives other samples.
    """

    def __init__(self, vocab_sizes: Sequence[int], seed: int) -> None:
        self._laws = [PowerLaw(*law) for law in zip(vocab_sizes, exponents(vocab_sizes))]
        self._offsets = key_offsets(vocab_sizes)
        self._seed = seed

    def block(self, number: int) -> NDArray[np.int64]:
        """The keys [BLOCK, tables] of one block."""
        random = np.random.default_rng([self._seed, number])
        columns = [law.ids(random.random(BLOCK)) for law in self._laws]
        return np.stack(columns, axis=1) + self._offsets

    def local_batches(self, samples: int, ranks: int) -> Iterator[NDArray[np.int64]]:
        """The local batches [samples, tables] of each rank in turn, from the start of the stream.

        Args:
            samples: Samples of a rank; a power of two, at most `BLOCK` or a multiple of it.
            ranks: Number of ranks.
        """
        for rank in range(ranks):
            first, last = rank * samples, (rank + 1) * samples
            blocks = range(first // BLOCK, -(-last // BLOCK))
            if samples < BLOCK:
                if first % BLOCK == 0:
                    kept = self.block(blocks[0])
                yield kept[first % BLOCK : first % BLOCK + samples]
            else:
                yield np.concatenate([self.block(block) for block in blocks])
