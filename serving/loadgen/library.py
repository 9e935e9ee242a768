"""The user-item pairs of a test's samples, in memory while LoadGen asks for them, and the answers.

It must not know LoadGen, nor what scores the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.data.batch import FloatArray, Source
from dlrm.distributed.host_memory import free_host_memory
from dlrm.formats.quantities import memory_text
from dlrm.metrics import probabilities
from serving.id_columns import IdColumns, SampleIds
from serving.loadgen.system import Answers

_VALUE_BYTES = 4  # of dense values, ids, weights and labels alike
_READ_PAIRS = 1 << 16  # at a time; what a read holds beside its result is bounded by this


class Pairs(NamedTuple):
    """User-item pairs of one or more samples.

    Attributes:
        dense: Dense values, float32 [pairs, num_dense].
        ids: Their ids, [pairs, columns].
        labels: Labels, float32 [pairs].
        sizes: Number of pairs of each sample, int64 [samples].
    """

    dense: FloatArray
    ids: SampleIds
    labels: FloatArray
    sizes: NDArray[np.int64]


class SampleLibrary:
    """Samples that are loaded and unloaded in sets, as LoadGen wants them.

    Args:
        source: The data.
        offsets: int64 [samples + 1]; see `partition.partition`.
        columns: The columns of the ids.

    Attributes:
        sizes: Number of pairs of each sample, int64 [samples].
    """

    def __init__(self, source: Source, offsets: NDArray[np.int64], columns: IdColumns) -> None:
        self.sizes = np.diff(offsets)
        self._source = source
        self._offsets = offsets
        self._columns = columns
        self._rows = np.full(len(self.sizes), -1, np.int64)  # where each loaded sample begins
        self._loaded: Pairs | None = None

    def load(self, samples: Sequence[int]) -> None:
        """Reads samples into memory; those that were loaded before are dropped.

        Raises:
            ValueError: A label or a dense value in the data is bad, or the memory does not suffice.
        """
        self.unload(samples)
        chosen = np.unique(np.asarray(samples, np.int64))
        total = int(self.sizes[chosen].sum())
        columns, weights = self._columns.width, self._columns.weights
        need = total * _VALUE_BYTES * (self._source.num_dense + columns * (1 + weights) + 1)
        free = free_host_memory()
        if free is not None and need > free:
            raise ValueError(
                f"expected {memory_text(need)} of free memory for {len(chosen):,} samples, found "
                f"{memory_text(free)}; load fewer at a time by a line such as "
                f"*.*.performance_sample_count_override = {len(chosen) * free // (2 * need)} in "
                "--user_conf"
            )
        loaded = Pairs(
            np.empty((total, self._source.num_dense), np.float32),
            SampleIds(
                np.empty((total, columns), np.int32),
                np.empty((total, columns), np.float32) if weights else None,
            ),
            np.empty(total, np.float32),
            self.sizes[chosen],
        )
        self._rows[chosen] = np.cumsum(self.sizes[chosen]) - self.sizes[chosen]
        row = 0
        # Samples that follow one another in the data are read together.
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            stop = int(self._offsets[run[-1] + 1])
            for first in range(int(self._offsets[run[0]]), stop, _READ_PAIRS):
                count = min(_READ_PAIRS, stop - first)
                dense, ids, labels = self._source.read(first, first + count)
                rows = slice(row, row + count)
                loaded.dense[rows], loaded.labels[rows] = dense, labels
                loaded.ids.put(rows, self._columns.lay_out(ids))
                row += count
        self._loaded = loaded

    def unload(self, samples: Sequence[int]) -> None:
        """Gives the memory back; LoadGen unloads the whole set that it loaded."""
        del samples
        self._loaded = None
        self._rows.fill(-1)

    def gather(self, samples: Sequence[int]) -> Pairs:
        """Returns the pairs of loaded samples, one sample after the other; a view where it can."""
        assert self._loaded is not None
        firsts = self._rows[samples]
        assert (firsts >= 0).all(), "not loaded"
        sizes = self.sizes[samples]
        rows = [slice(first, first + size) for first, size in zip(firsts.tolist(), sizes.tolist())]
        dense, ids, labels, _ = self._loaded
        if len(rows) == 1:
            return Pairs(dense[rows[0]], ids.rows(rows[0]), labels[rows[0]], sizes)
        return Pairs(
            np.concatenate([dense[r] for r in rows]),
            SampleIds.join([ids.rows(r) for r in rows]),
            np.concatenate([labels[r] for r in rows]),
            sizes,
        )


def pair_answers(score: Callable[..., FloatArray], with_labels: bool) -> Callable[[Pairs], Answers]:
    """Makes a function that answers samples with the probabilities of their pairs.

    Args:
        score: Returns the logits, float32 [pairs], of dense values, ids and weights or None.
        with_labels: Whether an answer is a pair (prediction, label) for each user-item pair, or
            the prediction alone.
    """

    def answer(pairs: Pairs) -> Answers:
        predictions = probabilities(score(pairs.dense, *pairs.ids))
        if not with_labels:
            return Answers(predictions, pairs.sizes)
        return Answers(np.stack([predictions, pairs.labels], axis=1).ravel(), 2 * pairs.sizes)

    return answer
