"""The planted click model behind the synthetic logs: features, true logits, labels.

It must not know about text, files or command lines. Everything is drawn from counter-seeded
generators, so that block `b` of a given seed is the same whatever comes before or after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.zip_strict import zip_strict

BLOCK_ROWS = 65536
"""Rows drawn from one generator; part of the data's definition, so not an option."""

_MODEL_STREAM, _CALIBRATION_STREAM, _BLOCK_STREAM = 0, 1, 2
_MAX_DENSE = 99_999_999

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ClickModelOptions:
    """What the planted model is made of.

    Attributes:
        vocab_sizes: Rows of each table; the missing value comes on top.
        num_dense: Integer features.
        zipf: Exponent s of the power law, probability of the id of rank r about (r+1)^-s.
        ctr: Share of positives aimed at.
        dense_strength: Standard deviation of the dense part of the logit.
        id_strength: Standard deviation of the sum of the per-id effects.
        pair_strength: Standard deviation of the sum of the id-pair effects.
        pairs: Pairs of tables that interact.
        pair_rank: Width of the latent vectors whose dot product is a pair's effect.
        missing: Mean share of missing values; column c has 0, 1 or 2 times it (c modulo 3).
        negative: Share of -1 among dense values.
    """

    vocab_sizes: tuple[int, ...]
    num_dense: int = 13
    zipf: float = 1.6
    ctr: float = 0.27
    dense_strength: float = 0.7
    id_strength: float = 1.0
    pair_strength: float = 0.8
    pairs: int = 3
    pair_rank: int = 4
    missing: float = 0.05
    negative: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that no data can have.

        Raises:
            ValueError: Naming the option, what was expected and what was found.
        """
        if not self.vocab_sizes or min(self.vocab_sizes) < 1:
            raise ValueError(
                f"vocab_sizes: expected one or more sizes of at least 1, found {self.vocab_sizes}"
            )
        checks = (
            ("num_dense", self.num_dense, self.num_dense >= 0, "0 or more"),
            ("zipf", self.zipf, self.zipf > 0, "above 0"),
            ("ctr", self.ctr, 0 < self.ctr < 1, "between 0 and 1"),
            ("missing", self.missing, 0 <= self.missing < 0.5, "in [0, 0.5)"),
            ("negative", self.negative, 0 <= self.negative <= 1, "in [0, 1]"),
            ("pair_rank", self.pair_rank, self.pair_rank >= 1, "1 or more"),
            ("dense_strength", self.dense_strength, self.dense_strength >= 0, "0 or more"),
            ("id_strength", self.id_strength, self.id_strength >= 0, "0 or more"),
            ("pair_strength", self.pair_strength, self.pair_strength >= 0, "0 or more"),
            ("pairs", self.pairs, self.pairs >= 0, "0 or more"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ValueError(f"{name}: expected {expected}, found {value}")


@dataclass(frozen=True)
class SampleBlock:
    """Consecutive rows, one array a column.

    Attributes:
        dense: Integers [num_dense, rows]; meaningless where `dense_missing`.
        dense_missing: Bool [num_dense, rows].
        ids: Id of each table [tables, rows]; the table's size stands for missing.
        labels: 0 or 1 [rows].
        logits: True logits, float64 [rows].
        logits_without_pairs: The same without the pair effects, float64 [rows].
    """

    dense: NDArray[np.int32]
    dense_missing: NDArray[np.bool_]
    ids: NDArray[np.int32]
    labels: NDArray[np.bool_]
    logits: NDArray[np.float64]
    logits_without_pairs: NDArray[np.float64]


def power_law_probabilities(size: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities of ranks 0..size-1: the integral of x^-exponent over [rank+1, rank+2]."""
    edges = np.arange(1, size + 2, dtype=np.float64)
    cumulative = np.log(edges) if exponent == 1 else edges ** (1 - exponent) / (1 - exponent)
    weights = np.diff(cumulative)
    return weights / weights.sum()


def power_law_ranks(uniform: Float32, size: int, exponent: float) -> NDArray[np.int32]:
    """Ranks drawn by inverting the continuous power law; `uniform` lies in [0, 1)."""
    if exponent == 1:
        x = np.exp(uniform * np.float32(np.log(size + 1)))
    else:
        span = np.float32((size + 1.0) ** (1 - exponent) - 1)
        x = np.power(1 + uniform * span, np.float32(1 / (1 - exponent)))
    # Rounding may carry the last values one past the end.
    return np.clip(x.astype(np.int32) - 1, 0, size - 1)


class ClickModel:
    """Draws blocks of rows and knows their true click probabilities.

    logit = bias + sum of dense weights * (ln(max(x, 0) + 1) - its mean) + sum of per-id effects
    + sum over the chosen pairs of tables of the dot product of two latent vectors. Missing and
    negative dense values count as 0, as they do after preprocessing. Per-id effects and latent
    vectors have mean 0 under the ids' distribution, so a pair's effect cannot be had from either
    of its tables alone. The only noise is the Bernoulli draw of the label.

    Args:
        options: Sizes and strengths.
        seed: The same seed gives the same rows.
    """

    def __init__(self, options: ClickModelOptions, seed: int) -> None:
        self.options = options
        self.seed = seed
        rng = self._generator(_MODEL_STREAM, 0)
        num_dense, tables = options.num_dense, len(options.vocab_sizes)
        # Medians from 0 to about 20 and heavy right tails, as counters of events have.
        self._dense_mean = rng.uniform(0.3, 3.0, num_dense).astype(np.float32)
        self._dense_spread = rng.uniform(0.6, 1.5, num_dense).astype(np.float32)
        self._dense_missing = self._missing_rates(num_dense)
        self._id_missing = self._missing_rates(tables)
        self.pairs = self._choose_pairs(rng)

        self._dense_weights = rng.standard_normal(num_dense).astype(np.float32)
        self._effects: list[Float32] = []
        self._latents: dict[int, Float32] = {}
        paired = {table for pair in self.pairs for table in pair}
        for table, size in enumerate(options.vocab_sizes):
            probabilities = self.id_probabilities(table)
            self._effects.append(
                _standardised(rng.standard_normal((size + 1, 1)), probabilities)[:, 0]
                * np.float32(options.id_strength / np.sqrt(tables))
            )
            if table in paired:
                latent = rng.standard_normal((size + 1, options.pair_rank))
                self._latents[table] = _standardised(latent, probabilities)
        self._pair_scale = options.pair_strength / np.sqrt(
            max(len(self.pairs), 1) * options.pair_rank
        )
        self._dense_offset, self._dense_scale, self.bias = 0.0, 1.0, 0.0
        self._calibrate()

    def id_probabilities(self, table: int) -> NDArray[np.float64]:
        """Probabilities of a table's ids, the last one being the missing value's, [size + 1]."""
        options = self.options
        present = power_law_probabilities(options.vocab_sizes[table], options.zipf)
        missing = self._id_missing[table]
        return np.append(present * (1 - missing), missing)

    def block(self, index: int) -> SampleBlock:
        """Draws block `index`: BLOCK_ROWS rows, the same at every call."""
        return self._draw(self._generator(_BLOCK_STREAM, index))

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.SFC64(np.random.SeedSequence([self.seed, stream, index]))
        )

    def _missing_rates(self, columns: int) -> Float32:
        return (self.options.missing * (np.arange(columns) % 3)).astype(np.float32)

    def _choose_pairs(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Matches tables at random among the smallest that have 3 rows or more.

        Small, because every combination of hot ids must be seen often enough to be learnt, and
        because the usual initial vectors of small tables are long enough for products to start.
        """
        sizes = np.asarray(self.options.vocab_sizes)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] >= min(3, int(sizes.max()))]
        count = min(self.options.pairs, len(order) // 2)
        chosen = rng.permutation(order[: 2 * count])
        return [(int(chosen[2 * i]), int(chosen[2 * i + 1])) for i in range(count)]

    def _calibrate(self) -> None:
        """Centres and scales the dense part, then finds the bias that gives the wanted rate."""
        sample = self._draw(self._generator(_CALIBRATION_STREAM, 0))
        dense = self._dense_part(sample.dense, sample.dense_missing)
        self._dense_offset = float(dense.mean())
        self._dense_scale = self.options.dense_strength / max(float(dense.std()), 1e-9)
        logits = self._logits(sample.dense, sample.dense_missing, sample.ids)[0]
        low, high = -30.0, 30.0
        for _ in range(60):
            self.bias = (low + high) / 2
            if np.mean(_sigmoid(logits + self.bias)) < self.options.ctr:
                low = self.bias
            else:
                high = self.bias

    def _draw(self, rng: np.random.Generator) -> SampleBlock:
        options = self.options
        rows = BLOCK_ROWS
        dense = np.empty((options.num_dense, rows), np.int32)
        dense_missing = np.empty((options.num_dense, rows), np.bool_)
        for column in range(options.num_dense):
            values = rng.standard_normal(rows, dtype=np.float32)
            values = np.exp(values * self._dense_spread[column] + self._dense_mean[column]) - 1
            chance = rng.random(rows, dtype=np.float32)
            missing = self._dense_missing[column]
            dense[column] = np.clip(values, 0, _MAX_DENSE)
            dense_missing[column] = chance < missing
            dense[column][(chance >= missing) & (chance < missing + options.negative)] = -1
        ids = np.empty((len(options.vocab_sizes), rows), np.int32)
        for table, size in enumerate(options.vocab_sizes):
            ids[table] = power_law_ranks(rng.random(rows, dtype=np.float32), size, options.zipf)
            if self._id_missing[table] > 0:
                ids[table][rng.random(rows, dtype=np.float32) < self._id_missing[table]] = size
        logits, without_pairs = self._logits(dense, dense_missing, ids)
        labels = rng.random(rows) < _sigmoid(logits)
        return SampleBlock(dense, dense_missing, ids, labels, logits, without_pairs)

    def _dense_part(
        self, dense: NDArray[np.int32], missing: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        total = np.zeros(dense.shape[1], np.float32)
        for column, weight in enumerate(self._dense_weights):
            known = np.where(missing[column], 0, np.maximum(dense[column], 0))
            total += weight * np.log1p(known.astype(np.float32))
        return total.astype(np.float64)

    def _logits(
        self, dense: NDArray[np.int32], missing: NDArray[np.bool_], ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """True logits with and without the pair effects, each [rows]."""
        alone = (self._dense_part(dense, missing) - self._dense_offset) * self._dense_scale
        alone += self.bias
        for effect, column in zip_strict(self._effects, ids):
            alone += effect[column]
        pairs = np.zeros(ids.shape[1], np.float32)
        for left, right in self.pairs:
            pairs += np.einsum(
                "rk,rk->r", self._latents[left][ids[left]], self._latents[right][ids[right]]
            )
        return alone + self._pair_scale * pairs, alone


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits))


def _standardised(values: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Float32:
    """Columns of `values` with mean 0 and variance 1 under `probabilities`, [ids, columns]."""
    centred = values - probabilities @ values
    spread = np.sqrt(probabilities @ centred**2)
    return (centred / np.maximum(spread, 1e-9)).astype(np.float32)
