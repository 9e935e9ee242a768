"""The floating-point operations of the model's matrix products, by arithmetic alone.

A multiplication with its addition counts as two. Training costs three times the forward work: each
product has two of the same size in its gradient. Norms, gates and gathers are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dlrm_v3.config import ACTION_WEIGHTS, HstuConfig


class OperationCounts(NamedTuple):
    """Operations of a forward pass.

    Attributes:
        preprocess: MLPs of items and actions, and the users' linear.
        projections: Products of the layers' rows with weights.
        attention: Products of queries with keys, and of weights with values.
        heads: What comes after the last layer.
    """

    preprocess: int
    projections: int
    attention: int
    heads: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def count_operations(
    config: HstuConfig, histories: Sequence[int], targets: Sequence[int]
) -> OperationCounts:
    """Counts what `Hstu.call` does; so do `encode_history` and `score_targets` together.

    The last layer computes keys and values alone for the rows of histories.

    Args:
        config: Shape of the model.
        histories: Length of each request's history.
        targets: Number of each request's candidates.
    """
    width, values = config.width, config.heads * config.value_dim
    keys = config.heads * config.attention_dim
    before, candidates = sum(histories) + len(histories), sum(targets)  # a row for each user
    small = 2 * width * config.hidden  # weights of an MLP from width to width
    bits = len(ACTION_WEIGHTS)
    action = config.hidden * (bits * config.action_dim + width)
    of_row = width * 2 * (values + keys) + 3 * values * width
    seen = sum(rows * (rows + 1) // 2 for rows in (history + 1 for history in histories))
    by_targets = sum(count * (history + 2) for history, count in zip(histories, targets))
    early = config.layers - 1
    layers = early * (before + candidates) * of_row
    layers += before * width * (values + keys) + candidates * of_row
    return OperationCounts(
        preprocess=2
        * (
            (before - len(histories) + candidates) * small
            + (sum(ACTION_WEIGHTS) + 2) * action
            + len(histories) * width**2
        ),
        projections=2 * layers,
        attention=2 * (keys + values) * (early * seen + config.layers * by_targets),
        heads=2 * candidates * width * ((width + 4) + 3 * width + width + len(config.tasks)),
    )
