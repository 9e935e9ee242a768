"""A generative click model for the synthetic logs: features, true logits and labels.

The model is known: its true click probabilities give the best AUC that any trained model can reach.
Each block of rows is drawn from its own generator, seeded by the block's index, so that a block
does not depend on the others. This module must not know about text, files or command lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.zip_strict import zip_strict

BLOCK_ROWS = 65536
"""Rows drawn from one generator. It is part of the definition of the data, so it is no option."""

_MODEL_STREAM, _CALIBRATION_STREAM, _BLOCK_STREAM = 0, 1, 2
_MAX_DENSE = 99_999_999

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ClickModelOptions:
    """The sizes and strengths of the click model.

    Attributes:
        vocab_sizes: Number of ids of each table, not counting the missing value.
        num_dense: Number of integer features.
        zipf: Exponent s of the power law; the id of rank r has a probability of about (r+1)^-s.
        ctr: Fraction of positive labels aimed at.
        dense_strength: Standard deviation of the dense part of the logit.
        id_strength: Standard deviation of the sum of the effects of single ids.
        pair_strength: Standard deviation of the sum of the effects of pairs of ids.
        pairs: Number of pairs of tables that interact.
        pair_rank: Width of the latent vectors whose dot product is the effect of a pair.
        missing: Mean fraction of missing values; column c has (c modulo 3) times this fraction.
        negative: Fraction of -1 among dense values.
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
        """Refuses values that no data can have.

        Raises:
            ValueError: A value is out of range; the message names the option.
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
    """Consecutive rows of samples, with their true logits.

    Attributes:
        dense: The dense values, int32 [num_dense, rows]; arbitrary where `dense_missing`.
        dense_missing: Whether a dense value is missing, bool [num_dense, rows].
        ids: The ids, int32 [tables, rows]; the size of the table marks a missing value.
        labels: The labels, bool [rows].
        logits: The true logits, float64 [rows].
        logits_without_pairs: The true logits without the effects of pairs, float64 [rows].
    """

    dense: NDArray[np.int32]
    dense_missing: NDArray[np.bool_]
    ids: NDArray[np.int32]
    labels: NDArray[np.bool_]
    logits: NDArray[np.float64]
    logits_without_pairs: NDArray[np.float64]


def power_law_probabilities(size: int, exponent: float) -> NDArray[np.float64]:
    """Returns the probabilities of ranks 0 to size - 1, float64 [size].

    The probability of a rank is proportional to the integral of x^-exponent over
    [rank + 1, rank + 2].
    """
    edges = np.arange(1, size + 2, dtype=np.float64)
    cumulative = np.log(edges) if exponent == 1 else edges ** (1 - exponent) / (1 - exponent)
    weights = np.diff(cumulative)
    return weights / weights.sum()


def power_law_ranks(uniform: Float32, size: int, exponent: float) -> NDArray[np.int32]:
    """Draws ranks, int32 [rows], by inverting the cumulative power law.

    Args:
        uniform: Uniform numbers in [0, 1), float32 [rows].
        size: The number of ranks.
        exponent: The exponent of the power law.
    """
    if exponent == 1:
        x = np.exp(uniform * np.float32(np.log(size + 1)))
    else:
        span = np.float32((size + 1.0) ** (1 - exponent) - 1)
        x = np.power(1 + uniform * span, np.float32(1 / (1 - exponent)))
    # Rounding may move the last values one past the end.
    return np.clip(x.astype(np.int32) - 1, 0, size - 1)


class ClickModel:
    """Draws blocks of rows together with their true click probabilities.

    The logit of a row is the sum of a bias, the weighted ln(max(x, 0) + 1) of its dense values
    (centred and scaled), the effect of each id, and for each chosen pair of tables the dot product
    of the latent vectors of its two ids. Missing and negative dense values count as 0, as they do
    after preprocessing. The effects and the latent vectors have mean 0 under the distribution of
    the ids, so that the effect of a pair cannot be predicted from either id alone. The only noise
    is the Bernoulli draw of the label.

    Args:
        options: The sizes and strengths.
        seed: The seed; the same seed gives the same rows.
    """

    def __init__(self, options: ClickModelOptions, seed: int) -> None:
        self.options = options
        self.seed = seed
        rng = self._generator(_MODEL_STREAM, 0)
        num_dense, tables = options.num_dense, len(options.vocab_sizes)
        # Medians from 0 to about 20 and heavy right tails, as counts of events have.
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
        """Returns the probabilities of a table's ids and, last, of a missing value, [size + 1]."""
        options = self.options
        present = power_law_probabilities(options.vocab_sizes[table], options.zipf)
        missing = self._id_missing[table]
        return np.append(present * (1 - missing), missing)

    def block(self, index: int) -> SampleBlock:
        """Draws the `BLOCK_ROWS` rows of block `index`; every call returns the same rows."""
        return self._draw(self._generator(_BLOCK_STREAM, index))

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.SFC64(np.random.SeedSequence([self.seed, stream, index]))
        )

    def _missing_rates(self, columns: int) -> Float32:
        return (self.options.missing * (np.arange(columns) % 3)).astype(np.float32)

    def _choose_pairs(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Matches tables at random among the smallest that have 3 rows or more.

        Small tables, because a model must see every combination of frequent ids often enough, and
        because the usual initial vectors of small tables are large enough for their products to
        grow.
        """
        sizes = np.asarray(self.options.vocab_sizes)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] >= min(3, int(sizes.max()))]
        count = min(self.options.pairs, len(order) // 2)
        chosen = rng.permutation(order[: 2 * count])
        return [(int(chosen[2 * i]), int(chosen[2 * i + 1])) for i in range(count)]

    def _calibrate(self) -> None:
        """Centres and scales the dense part, and finds the bias that gives the click rate."""
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
        """Draws one block.

        The order of the draws defines the data: for each dense column its log-normal values and
        then which are missing or -1, for each table its ids and then which are missing, and at
        last the labels.
        """
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
        """Returns the weighted sum of the logarithms, before centring and scaling, [rows]."""
        total = np.zeros(dense.shape[1], np.float32)
        for column, weight in enumerate(self._dense_weights):
            known = np.where(missing[column], 0, np.maximum(dense[column], 0))
            total += weight * np.log1p(known.astype(np.float32))
        return total.astype(np.float64)

    def _logits(
        self, dense: NDArray[np.int32], missing: NDArray[np.bool_], ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the true logits with and without the effects of pairs, each float64 [rows]."""
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
    """Shifts and scales columns to mean 0 and variance 1 under `probabilities`, [ids, columns]."""
    centred = values - probabilities @ values
    spread = np.sqrt(probabilities @ centred**2)
    return (centred / np.maximum(spread, 1e-9)).astype(np.float32)
