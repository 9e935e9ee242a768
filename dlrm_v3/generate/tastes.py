"""What an item and a category of a user are worth: the ratings of an event and their probabilities.

An event's rating is the mean of its item's rating, fixed for the item, and of a rating that the
user's category has at the time, drawn for each event from one of four distributions (the quarters
of the user's categories, in the order drawn) that drift with a period of eight timestamps. All
probabilities of the latter are tenths, so one draw of a tenth, 0 to 9, decides it. This module must
not know users, lengths or files.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import splitmix64
from dlrm_v3.config import POSITIVE_RATING

TENTHS = 10
QUARTERS = 4
DRIFT_PERIOD = 8

ITEM_RATINGS = (5, 4, 3, 2, 1)
ITEM_SHARES = (0.2, 0.25, 0.25, 0.2, 0.1)
"""The ratings that an item may have, and the shares of the items that do."""

_RATING_OF_TWENTIETH = np.repeat(
    np.arange(5, dtype=np.uint8), np.rint(np.multiply(ITEM_SHARES, 20)).astype(int)
)
"""The place of the rating, for each of 20 equal parts of a hash's range."""

_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
"""A shift and a factor of each round of a 32-bit hash (Wellons: Prospecting for Hash Functions)."""

_OUTCOME_OF_TENTH = np.array([[0] * 8 + [1] * 2] + [[0] + [1] * 8 + [2]] * 3)
"""int64 [quarters, tenths]: which of a quarter's outcomes a tenth stands for."""


class TasteTable(NamedTuple):
    """What is known of the events of one timestamp, by quarter, tenth and place in `ITEM_RATINGS`.

    Attributes:
        ratings: float32 [quarters, tenths, 5], the event's rating.
        labels: bool of the same shape, whether the rating is positive.
        probabilities: float32 of the same shape, the probability that it is, before the tenth is
            drawn: the same for all tenths.
    """

    ratings: NDArray[np.float32]
    labels: NDArray[np.bool_]
    probabilities: NDArray[np.float32]


def taste_table(timestamp: int) -> TasteTable:
    """Computes the ratings of a timestamp and their probabilities."""
    # Whole periods leave out, so that the same phase has the same bits.
    phase = timestamp % DRIFT_PERIOD
    a, b, d = (math.cos((phase + shift) * math.pi / 4) / 2 for shift in (0, 2, 4))
    outcomes = np.array(
        [
            [4.5 + a, 4 + b, math.nan],
            [4.5 + a, 4 + b, 3.5 + d],
            [3.5 + a, 3 + b, 2.5 + d],
            [2.5 + a, 2 + b, 1.5 + d],
        ]
    )
    of_category = np.take_along_axis(outcomes, _OUTCOME_OF_TENTH, axis=1)  # [quarters, tenths]
    ratings = ((of_category[:, :, None] + np.array(ITEM_RATINGS)) / 2).astype(np.float32)
    labels = ratings >= POSITIVE_RATING
    probabilities = (labels.sum(axis=1, keepdims=True) / TENTHS).astype(np.float32)
    return TasteTable(ratings, labels, np.repeat(probabilities, TENTHS, axis=1))


def quarter_of(place: int, categories_per_user: int) -> int:
    """The quarter, 0 to 3, of the category that a user drew as the `place`-th."""
    quarter, half = categories_per_user // QUARTERS, categories_per_user // 2
    bounds = (quarter, half, quarter * (QUARTERS - 1))
    return next((number for number, bound in enumerate(bounds) if place < bound), QUARTERS - 1)


def item_places(items: NDArray[np.int32], seed: int) -> NDArray[np.uint8]:
    """Computes the place in `ITEM_RATINGS` of each item's rating.

    It is a hash of seed and item, so that no table of all items is needed and no shard depends on
    another.

    Args:
        items: Ids, of any shape.
        seed: The seed of the data.
    """
    key = np.array([seed], np.uint64)
    splitmix64.mix(key)
    low, high = key.view(np.uint32)
    words = items.astype(np.uint32)
    words += low
    scratch = np.empty_like(words)
    for shift, factor in _ROUNDS:
        np.right_shift(words, np.uint32(shift), out=scratch)
        words ^= scratch
        words *= np.uint32(factor)
        words ^= high
    words >>= np.uint32(8)  # leaves room for the product
    words *= np.uint32(len(_RATING_OF_TWENTIETH))
    words >>= np.uint32(24)
    return _RATING_OF_TWENTIETH.take(words)
