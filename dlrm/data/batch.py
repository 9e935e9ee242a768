"""The types of the input: a source of samples, and a batch of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bags import BagLayout

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
# IntArray, or Bags where the source has a layout of bags; which of them, callers know.
Ids = Any
Samples = tuple[FloatArray, Ids, FloatArray]


class Source(Protocol):
    """Anything that returns samples by their position."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""

    @property
    def num_dense(self) -> int:
        """Number of dense columns."""

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Number of rows of each table."""

    @property
    def bag_layout(self) -> BagLayout | None:
        """How bags of ids are pooled; None if every table has one id for each sample."""

    @property
    def fingerprint(self) -> str:
        """A text that almost surely differs where the samples differ; cheap at any size."""

    def read(self, start: int, stop: int) -> Samples:
        """Reads samples [start, stop) into new arrays; called from several threads at once.

        Returns:
            Dense values, float32 [samples, num_dense]; ids, int32 [samples, tables], or `Bags` if
            there is a `bag_layout`; labels, float32 [samples].
        """


class Fingerprints(Mapping[str, str]):
    """The fingerprints of sources by name, each computed when it is first asked for.

    A fingerprint reads from the files. MLPerf's clock must run before anything does.

    Args:
        sources: The sources by name.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._found: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The fingerprint of one source."""
        if name not in self._found:
            self._found[name] = self._sources[name].fingerprint
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Yields the names."""
        return iter(self._sources)

    def __len__(self) -> int:
        """Number of sources."""
        return len(self._sources)


class Batch(NamedTuple):
    """One rank's share of a global batch.

    Attributes:
        dense: Dense values, float32 [local batch, num_dense].
        ids: One id for each table, int32 [local batch, tables]; or bags of them.
        labels: Labels 0 or 1, float32 [local batch].
        valid: Number of leading samples that are real; the rest is padding with zeros, and with
            empty bags. It is less than the local batch only in the last batch of an evaluation.
        first: Position of the first sample in the source.
    """

    dense: FloatArray
    ids: Ids
    labels: FloatArray
    valid: int
    first: int = 0
