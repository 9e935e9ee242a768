"""Scores of the test data by a checkpoint, as they are and with one column shuffled.

The model is computed in float32 by NumPy (`serving.dense_model`), so any interaction and any number
of ranks will do and no operation must be built. In memory are the rows that samples name.

Shapes: D dense columns, T tables, vectors of W values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import Manifest, read_manifest
from dlrm.metrics import exact_auc
from serving.checkpoint_samples import PIECE_SAMPLES, CheckpointSamples, ModelSamples
from serving.dense_model import DenseModel
from serving.dense_weights import read_dense
from serving.id_columns import SampleIds

WINDOW = 1 << 19  # samples whose rows are read from the checkpoint at a time

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


class SampleScores(NamedTuple):
    """The scores of all samples.

    Attributes:
        logits: float32 [samples].
        labels: float32 [samples].
        groups: The column by which samples are grouped, int32 [samples]; None without one.
    """

    logits: Floats
    labels: Floats
    groups: Ids | None


class Importance(NamedTuple):
    """What a column gives: the AUC that is lost when its values are shuffled among the samples.

    Attributes:
        name: `dense 3` or `category 7`, counted from 0.
        mean: Mean loss over the repetitions.
        deviation: Its standard deviation over them; 0 for a single one.
    """

    name: str
    mean: float
    deviation: float


class ReportedModel:
    """A checkpoint and the test data that fits it.

    Args:
        checkpoint: The checkpoint.
        data: The split folder of the test data.

    Attributes:
        manifest: The checkpoint's manifest.
        samples: The test data.

    Raises:
        ValueError: The checkpoint is damaged or has no dense weights, or the data does not fit it.
        OSError: A file cannot be read.
    """

    def __init__(self, checkpoint: Path, data: Path) -> None:
        self.manifest: Manifest = read_manifest(checkpoint)
        self._checkpoint = checkpoint
        self._model = DenseModel(read_dense(checkpoint, self.manifest), self.manifest.model)
        self.samples = ModelSamples(data, self.manifest.model)

    def score(self, group: int | None) -> SampleScores:
        """Scores all samples.

        Args:
            group: The table whose ids say which group a sample is in; None for no groups.
        """
        logits, labels, groups = [], [], []
        for start in range(0, self.samples.num_samples, WINDOW):
            pieces = self.samples.pieces_of(start, min(start + WINDOW, self.samples.num_samples))
            source = CheckpointSamples(self._checkpoint, self.manifest, self.samples, pieces)
            for piece in pieces:
                dense, ids, its_labels = self.samples.read(*piece)
                logits.append(self._model.logits(dense, source.vectors(source.places(ids))))
                labels.append(its_labels)
                if group is not None:
                    groups.append(ids.ids[:, self._column_of(group)])
        return SampleScores(
            self._finite(np.concatenate(logits)),
            np.concatenate(labels),
            np.concatenate(groups) if groups else None,
        )

    def importance(self, wanted: int, repeats: int, seed: int) -> Iterator[Importance]:
        """Yields the importance of each dense column, then of each categorical one.

        Every column and repetition has a generator of its own, so none depends on the others.

        Args:
            wanted: Number of samples to use, taken at equal distances; all if there are fewer.
            repeats: Number of times that each column is shuffled.
            seed: Seed of the shuffles.
        """
        pieces = self.samples.pieces(wanted)
        source = CheckpointSamples(self._checkpoint, self.manifest, self.samples, pieces)
        all_dense, all_ids, all_labels = zip(*(self.samples.read(*piece) for piece in pieces))
        dense, labels = np.concatenate(all_dense), np.concatenate(all_labels)
        places = source.places(SampleIds.join(all_ids))
        whole = exact_auc(self._logits(source, dense, places), labels)
        tables = range(len(self.samples.columns.counts))
        shuffled = [
            ("dense", column, slice(column, column + 1)) for column in range(dense.shape[1])
        ]
        shuffled += [("category", table, self.samples.columns.of_table(table)) for table in tables]
        for kind, column, part in shuffled:
            # A weight goes with its id.
            arrays = (dense,) if kind == "dense" else places
            kept = [(array, array[:, part].copy()) for array in arrays if array is not None]
            losses = []
            for repeat in range(repeats):
                place = [seed, int(kind == "category"), column, repeat]
                order = np.random.default_rng(place).permutation(len(dense))
                for array, values in kept:
                    array[:, part] = values[order]
                losses.append(whole - exact_auc(self._logits(source, dense, places), labels))
            for array, values in kept:
                array[:, part] = values
            yield Importance(f"{kind} {column}", float(np.mean(losses)), float(np.std(losses)))

    def _column_of(self, table: int) -> int:
        """The only column of a table's ids."""
        columns = self.samples.columns.of_table(table)
        if self.samples.columns.may_be_empty[columns.start]:
            raise ValueError(
                f"--auc_by: expected a column of one id, found bags of them in table {table}; name "
                "another column"
            )
        return columns.start

    def _logits(self, source: CheckpointSamples, dense: Floats, places: SampleIds) -> Floats:
        logits = np.empty(len(dense), np.float32)
        for start in range(0, len(dense), PIECE_SAMPLES):
            part = slice(start, start + PIECE_SAMPLES)
            logits[part] = self._model.logits(dense[part], source.vectors(places.rows(part)))
        return logits

    def _finite(self, logits: Floats) -> Floats:
        good = np.isfinite(logits)
        if not good.all():
            sample = int(np.argmin(good))
            raise ValueError(
                f"{self._checkpoint}: sample {sample}: expected a finite logit, found "
                f"{logits[sample]}; take another checkpoint"
            )
        return logits
