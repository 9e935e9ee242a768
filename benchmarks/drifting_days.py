"""Click logs of consecutive days, in which ids come and go and the truth drifts.

Each table has a fixed number of live ids, used by a power law. Every morning some of them are
replaced by ids that no day had before, and the effects of those that stay move a little. The true
logits of a day are known, so that the best possible AUC on it is. Lines are Criteo's: label, whole
numbers, hexadecimal categories. This module must not know about preprocessing or training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.click_model import power_law_ranks
from preprocess.score_histogram import ScoreHistogram
from preprocess.synthetic import category_hash


@dataclass(frozen=True)
class DriftOptions:
    """The sizes and the drift of the days.

    Attributes:
        live_ids: Number of live ids of each table.
        replaced: Share of them that are replaced every morning.
        kept: Correlation of an id's effect with that of the day before.
        num_dense: Number of dense columns.
        zipf: Exponent of the power law of the live ids.
        strength: Standard deviation of the sum of the ids' effects, in the logit.
        bias: The logit without any effect.
    """

    live_ids: tuple[int, ...] = (4000, 1000, 300, 50)
    replaced: float = 0.1
    kept: float = 0.97
    num_dense: int = 3
    zipf: float = 1.1
    strength: float = 1.5
    bias: float = -1.2


@dataclass(frozen=True)
class DayLog:
    """The log of a day.

    Attributes:
        text: Its lines.
        best_auc: The AUC of the true logits, which no model exceeds but by chance.
        fresh: The share of its ids that no day before could hold.
    """

    text: str
    best_auc: float
    fresh: float


class DriftingTable:
    """The live ids of one table, and what each adds to the logit today.

    Args:
        number: The number of the table.
        options: The options of the days.
        generator: Draws the first effects.
    """

    def __init__(self, number: int, options: DriftOptions, generator: np.random.Generator) -> None:
        self._number, self._options = number, options
        self._live = np.arange(options.live_ids[number])
        self._effects = generator.standard_normal(len(self._live))
        self._following = len(self._live)
        self._is_fresh: NDArray[np.bool_] = np.zeros(len(self._live), np.bool_)

    def next_morning(self, generator: np.random.Generator) -> None:
        """Replaces some ids and moves the effects of the others."""
        noise = generator.standard_normal(len(self._live))
        kept = self._options.kept
        self._is_fresh = generator.random(len(self._live)) < self._options.replaced
        moved = kept * self._effects + np.sqrt(1 - kept**2) * noise
        self._effects = np.where(self._is_fresh, noise, moved)
        count = int(self._is_fresh.sum())
        self._live[self._is_fresh] = np.arange(self._following, self._following + count)
        self._following += count

    def draw(
        self, generator: np.random.Generator, rows: int
    ) -> tuple[list[str], NDArray[np.float64], float]:
        """Draws the ids of some rows: their text, effects [rows], and the share of fresh ones."""
        uniform = generator.random(rows, dtype=np.float32)
        ranks = power_law_ranks(uniform, len(self._live), self._options.zipf)
        hashes = category_hash(self._number, self._live[ranks])
        texts = [f"{value:08x}" for value in hashes.tolist()]
        return texts, self._effects[ranks], float(self._is_fresh[ranks].mean())


def drifting_days(options: DriftOptions, rows: int, seed: int) -> Iterator[DayLog]:
    """Yields one day after the other, without end; the same seed gives the same days.

    Args:
        options: The sizes and the drift.
        rows: The number of rows of each day.
        seed: The seed.
    """
    generator = np.random.default_rng(seed)
    tables = [DriftingTable(t, options, generator) for t in range(len(options.live_ids))]
    weights = generator.standard_normal(options.num_dense) * 0.2
    scale = options.strength / np.sqrt(len(tables))
    while True:
        dense = np.floor(generator.lognormal(1.0, 1.0, (rows, options.num_dense))).astype(np.int64)
        logits = options.bias + (np.log1p(dense) - 1.2) @ weights
        columns, fresh = [], []
        for table in tables:
            texts, effects, share = table.draw(generator, rows)
            logits += scale * effects
            columns.append(texts)
            fresh.append(share)
        labels = generator.random(rows) < 1 / (1 + np.exp(-logits))
        scores = ScoreHistogram()
        scores.add(logits, labels)
        numbers = [map(str, column.tolist()) for column in (labels.astype(int), *dense.T)]
        lines = map("\t".join, zip(*numbers, *columns))
        yield DayLog("\n".join(lines) + "\n", scores.auc() or 0.5, float(np.mean(fresh)))
        for table in tables:
            table.next_morning(generator)


def hashed_schema(options: DriftOptions) -> dict[str, Any]:
    """Returns the schema of a day's log in which the id of a value is its number."""
    dense = [f"dense_{i}" for i in range(options.num_dense)]
    tables = [f"table_{i}" for i in range(len(options.live_ids))]
    hashed = {"type": "hex", "ids": "hash", "modulo": 2**31 - 1}
    return {
        "columns": ["label", *dense, *tables],
        "label": "label",
        "dense": dense,
        "categorical": [{"name": name, **hashed} for name in tables],
        "split": {"by": "fraction", "test": 0},
    }
