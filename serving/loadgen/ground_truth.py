"""What predictions are judged by: the labels in the data, and the AUC of a reference artifact.

It must not know LoadGen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.data import open_split
from dlrm.data.batch import FloatArray, Source
from dlrm.metrics import exact_auc, probabilities
from serving.checkpoint_samples import check_fit
from serving.scorer import Scorer

_BATCH = 1 << 15


def labels_by_sample(source: Source, offsets: NDArray[np.int64]) -> Callable[[int], FloatArray]:
    """Makes a function that returns the labels of a sample, float32 [pairs].

    Args:
        source: The data.
        offsets: int64 [samples + 1], the pairs of each sample.
    """
    if offsets[-1] > source.num_samples:
        raise ValueError(
            f"expected data of at least {offsets[-1]:,} pairs, as the trace says, found "
            f"{source.num_samples:,}; name the trace and the data of the same run"
        )
    firsts = range(int(offsets[0]), int(offsets[-1]), _BATCH)
    parts = [source.read(a, min(a + _BATCH, int(offsets[-1])))[2] for a in firsts]
    labels = np.concatenate(parts)

    def of_sample(sample: int) -> FloatArray:
        if not 0 <= sample < len(offsets) - 1:
            raise ValueError(
                f"sample {sample}: expected one of the {len(offsets) - 1:,} samples of the trace; "
                "name the trace of the same run"
            )
        first, stop = (offsets[sample : sample + 2] - offsets[0]).tolist()
        return labels[first:stop]

    return of_sample


def reference_auc(artifact: Path, data: Path, first: int, stop: int) -> float:
    """Scores the pairs [first, stop) with an artifact and returns the AUC of its predictions.

    Args:
        artifact: The artifact.
        data: The split folder.
        first: Position of the first pair.
        stop: Position behind the last pair.

    Raises:
        OSError: The artifact or the scorer's library is missing.
        ValueError: The artifact is damaged, or the data does not belong to its model.
    """
    predictions: list[FloatArray] = []
    labels: list[FloatArray] = []
    source = open_split(data, per_category=False)
    with Scorer.open(artifact) as scorer:
        check_fit(data, source, scorer.artifact.model)
        for start in range(first, stop, _BATCH):
            dense, ids, its_labels = source.read(start, min(start + _BATCH, stop))
            ids = scorer.columns.lay_out(ids)
            predictions.append(probabilities(scorer.score(dense, *ids)))
            labels.append(its_labels)
    return exact_auc(np.concatenate(predictions), np.concatenate(labels))
