"""A checkpoint of dynamic tables, written by hand, and what its model computes.

What an id must have is decided here, one id after the other, from what the checkpoint is made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape
from serving.__main__ import main
from serving.scorer import Scorer
from tests.support.artifacts import ArtifactReference, Layer
from tests.support.checkpoints import DynamicRow, random_weights, write_dynamic_checkpoint
from tests.support.reference_known_ids import KnownTableReference
from tests.support.tiny_data import write_split

SEED, STEP, KEPT = 20261128, 50, 10
LARGEST = 2**31 - 1
SIZES = (LARGEST, 50, 3000, LARGEST)
MODEL = ModelShape(3, SIZES, 6, (5, 6), (8, 1), dynamic=True)
SAMPLES = 300


class DynamicModel:
    """A checkpoint, written by some ranks, and what its model computes."""

    def __init__(self, folder: Path, *, shares: bool, ranks: int = 2) -> None:
        print("seed", SEED)
        dice = np.random.default_rng(SEED)
        tables, references = [], []
        shared = dice.normal(size=(len(SIZES), 6)).astype("<f4")
        self.ids: list[NDArray[Any]] = []  # of each table: known, waiting, forgotten, never seen
        for table, size in enumerate(SIZES):
            ids = dice.choice(min(size, 3000), 40, replace=False) * (max(size // 3000, 1))
            ids[:2] = size - 1, size - 2
            ids = np.unique(ids)
            lasts = dice.integers(STEP - 2 * KEPT, STEP + 2, len(ids))
            lasts[:2] = STEP + 1 - KEPT, STEP - KEPT  # kept just so, and forgotten just so
            waits = shares & (np.arange(len(ids)) % 5 == 4)
            rows = dice.normal(size=(len(ids), 6)).astype("<f4")
            tables.append(
                {
                    int(number): DynamicRow(None if wait else row, int(last))
                    for number, row, last, wait in zip(ids, rows, lasts, waits)
                }
            )
            known = (lasts >= STEP + 1 - KEPT) & ~waits
            assert 5 < known.sum() < 35
            seed = None if shares else SEED
            of_table = np.concatenate([shared[table : table + 1], rows[known]]).astype(np.float64)
            references.append(
                KnownTableReference(ids[known].tolist(), of_table, SIZES, table, seed)
            )
            around = np.clip(np.concatenate([ids, ids - 1, ids + 1, [0]]), 0, size - 1)
            self.ids.append(np.append(around, dice.integers(0, size, 40)))
        weights = random_weights(MODEL, seed=7)
        self.checkpoint = write_dynamic_checkpoint(
            folder / "checkpoint",
            MODEL,
            tables,
            shared if shares else shared[:0],
            weights,
            ranks=ranks,
            step=STEP,
            seed=SEED,
            evict_after=KEPT,
        )
        layers = {
            mlp: [Layer(weights[f"{mlp}_kernel_{i}"], weights[f"{mlp}_bias_{i}"]) for i in range(2)]
            for mlp in ("bottom", "top")
        }
        self.reference = ArtifactReference(references, layers["bottom"], layers["top"])
        self.dense = dice.normal(size=(SAMPLES, 3)).astype(np.float32)
        columns = [dice.choice(ids, SAMPLES) for ids in self.ids]
        self.samples = np.stack(columns, axis=1).astype("<i4")
        self.expected = self.reference.logits(self.dense, self.samples)
        assert np.std(self.expected) > 0.1
        self.data = write_split(
            folder / "data",
            (dice.logistic(size=SAMPLES) < self.expected).astype("<i4"),
            self.dense,
            self.samples,
            SIZES,
            dense_log=False,
        )

    def export(self, out: Path, *words: str) -> Path:
        assert main(["export", str(self.checkpoint), str(out), *words]) == 0
        return out

    def score(self, folder: Path) -> NDArray[np.float32]:
        with Scorer.open(folder) as scorer:
            return scorer.score(self.dense, self.samples)
