"""The types of the input: a source of samples, and a batch of one rank."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
Samples = tuple[FloatArray, IntArray, FloatArray]


class Source(Protocol):
    """Anything that gives samples by number."""

    @property
    def num_samples(self) -> int:
        """Samples in all."""

    @property
    def num_dense(self) -> int:
        """Dense columns."""

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Rows of each table."""

    @property
    def fingerprint(self) -> str:
        """Differs, as a rule, where the samples differ; quick at any size."""

    def read(self, start: int, stop: int) -> Samples:
        """Samples [start, stop) as fresh arrays; called from several threads at once.

        Returns:
            dense float32 [samples, num_dense], ids int32 [samples, tables],
            labels float32 [samples].
        """


class Batch(NamedTuple):
    """One rank's share of a global batch.

    Attributes:
        dense: float32 [local batch, num_dense].
        ids: int32 [local batch, tables].
        labels: float32 [local batch], 0 or 1.
        valid: Samples that count; those after them are zeros. Less than the local batch only in
            the last batch of an evaluation.
        first: Number of the first one among all samples.
    """

    dense: FloatArray
    ids: IntArray
    labels: FloatArray
    valid: int
    first: int = 0
