"""Ratings and the probabilities of labels, against the mixtures that the process states."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dlrm_v3.data.layout import eval_slot
from dlrm_v3.generate.best import label_counts, summary
from dlrm_v3.generate.process import EventProcess, UserEvents
from dlrm_v3.generate.tastes import quarter_of, taste_table
from tests.unit.dlrm_v3.test_process import (
    CONFIG,
    ITEM_SHARES,
    Events,
    assert_shares,
    category_counts,
    events_of,
    item_ratings,
)

pytestmark = pytest.mark.one_profile

USERS = 4000


def mixture(quarter: int, timestamp: int) -> dict[float, float]:
    """What a category of a user is worth, to four digits: value -> share."""
    a, b, d = (math.cos((timestamp + shift) * math.pi / 4) for shift in (0, 2, 4))
    stated = (
        [(4.5 + a / 2, 0.8), (4 + b / 2, 0.2)],
        [(4.5 + a / 2, 0.1), (4 + b / 2, 0.8), (3.5 + d / 2, 0.1)],
        [(3.5 + a / 2, 0.1), (3 + b / 2, 0.8), (2.5 + d / 2, 0.1)],
        [(2.5 + a / 2, 0.1), (2 + b / 2, 0.8), (1.5 + d / 2, 0.1)],
    )[quarter]
    shares: dict[float, float] = {}
    for value, share in stated:  # two may have one value
        shares[round(value, 4)] = shares.get(round(value, 4), 0) + share
    return dict(sorted(shares.items()))


def worth(events: Events) -> np.ndarray:
    """The part of the category in the ratings, to four digits."""
    return (2 * events.ratings.astype(np.float64) - item_ratings(events.items)).round(4)


@pytest.fixture(scope="module")
def block() -> UserEvents:
    return EventProcess(CONFIG).block(0, USERS)


@pytest.fixture(scope="module")
def quarters(block: UserEvents) -> np.ndarray:
    """The likeliest quarter of each category of each user by the whole history; -1 if it is short.

    [users, categories].
    """
    likelihoods = np.zeros((4, USERS * CONFIG.categories))
    for slot in range(19):
        events = events_of(block, "history", slot)
        cells = events.users * CONFIG.categories + events.categories
        values, places = np.unique(worth(events), return_inverse=True)
        for quarter in range(4):
            shares = mixture(quarter, slot - 1)
            logs = np.log([shares.get(value, 1e-4) for value in values])
            likelihoods[quarter] += np.bincount(cells, logs[places], likelihoods.shape[1])
    found = likelihoods.argmax(axis=0).reshape(USERS, CONFIG.categories)
    counts = [category_counts(events_of(block, "history", slot)) for slot in range(19)]
    found[np.sum(counts, axis=0) < 40] = -1
    return found


def test_the_quarters_of_a_user_are_in_random_order(quarters: np.ndarray) -> None:
    for quarter in range(4):
        assert_shares((quarters == quarter).sum(axis=0), np.full(16, 1 / 16))
        # A user has each of them once.
        assert (quarters == quarter).sum(axis=1).max() == 1


@pytest.mark.parametrize("timestamp", [0, 1, 2, 3, 4, 7, 10, 17, 19])
def test_what_a_category_is_worth(block: UserEvents, quarters: np.ndarray, timestamp: int) -> None:
    events = events_of(block, "candidate" if timestamp >= 18 else "history", timestamp + 1)
    for quarter in range(4):
        shares = mixture(quarter, timestamp)
        mine = worth(events)[quarters[events.users, events.categories] == quarter]
        values, counts = np.unique(mine, return_counts=True)
        assert values.tolist() == list(shares)
        assert_shares(counts, list(shares.values()))


def test_the_table_of_a_timestamp() -> None:
    for timestamp, quarter in itertools.product(range(-1, 100), range(4)):
        table, shares = taste_table(timestamp), mixture(quarter, timestamp)
        for place, item_rating in enumerate((5, 4, 3, 2, 1)):
            ratings = table.ratings[quarter, :, place]
            values, tenths = np.unique(
                (2 * ratings.astype(np.float64) - item_rating).round(4), return_counts=True
            )
            assert values.tolist() == list(shares)
            assert tenths / 10 == pytest.approx(list(shares.values()))
            # 4 and 3 reach 3.5 exactly, however the cosine is rounded.
            positive = sum(p for value, p in shares.items() if value + item_rating >= 6.9999)
            assert table.probabilities[quarter, :, place] == pytest.approx(np.full(10, positive))
            assert table.labels[quarter, :, place].mean() == pytest.approx(positive)
            assert (table.labels[quarter, :, place] == (ratings >= 3.5)).all()


def test_taste_drifts_with_a_period_of_eight() -> None:
    rates = []
    for timestamp in range(-1, 99):
        assert (taste_table(timestamp).ratings == taste_table(timestamp + 8).ratings).all()
        rates.append(taste_table(timestamp).labels.mean())
    assert not np.allclose(rates[:8], rates[4:12], atol=0.05)


def test_drift_is_seen_in_the_labels(block: UserEvents) -> None:
    rates = [(events_of(block, "candidate", slot).ratings >= 3.5).mean() for slot in range(1, 21)]
    assert rates[0:12] == pytest.approx(rates[8:20], abs=0.02)
    assert max(rates) - min(rates) > 0.2


@pytest.mark.parametrize(
    ("categories", "expected"),
    [(4, [0, 1, 2, 3]), (8, [0, 0, 1, 1, 2, 2, 3, 3]), (1, [3]), (2, [1, 3]), (5, [0, 1, 2, 3, 3])],
)
def test_quarters(categories: int, expected: list[int]) -> None:
    assert [quarter_of(place, categories) for place in range(categories)] == expected


def test_labels_come_with_their_probabilities(block: UserEvents) -> None:
    labels = block.candidate_ratings >= 3.5
    for tenth in range(11):
        mine = labels[np.isclose(block.candidate_probabilities, tenth / 10)]
        if len(mine):
            assert_shares([mine.sum(), (~mine).sum()], [tenth / 10, 1 - tenth / 10])
    assert set(np.unique(block.candidate_probabilities.round(5))) <= {
        np.float32(tenth / 10) for tenth in range(11)
    }


def test_the_best_figures(block: UserEvents) -> None:
    """Against the definitions, candidate by candidate."""
    best = summary([label_counts(block.tallies, CONFIG)], CONFIG)
    slots = np.repeat(
        np.tile(np.arange(CONFIG.timestamps + 2), USERS), block.candidate_lengths.ravel()
    )
    parts = [
        (best["train"], (slots >= 1) & (slots <= 18)),
        (best["inference"], (slots == 19) | (slots == 20)),
        (best["eval"], slots == eval_slot(CONFIG)),
        (best["train"]["timestamps"]["0"], slots == 1),
        (best["train"]["timestamps"]["17"], slots == 18),
        (best["inference"]["timestamps"]["19"], slots == 20),
    ]
    for figures, chosen in parts:
        assert_figures(
            figures,
            block.candidate_ratings[chosen] >= 3.5,
            block.candidate_probabilities[chosen].astype(np.float64),
        )


def assert_figures(figures: dict[str, Any], labels: np.ndarray, chances: np.ndarray) -> None:
    likelihood = np.where(labels, chances, 1 - chances)
    rate = labels.mean()
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert figures["candidates"] == len(labels)
    assert figures["rate"] == pytest.approx(rate)
    loss = -np.log(likelihood).mean()
    assert figures["normalised_entropy"] == pytest.approx(loss / entropy, rel=1e-5)
    assert figures["accuracy"] == ((chances >= 0.5) == labels).mean()
    assert figures["auc"] == pytest.approx(pairwise_auc(chances.round(6), labels), abs=1e-12)


def test_the_figures_of_who_knows_less(block: UserEvents, quarters: np.ndarray) -> None:
    """Of item or user, the chance is the mean over what is not known of the other."""
    best = summary([label_counts(block.tallies, CONFIG)], CONFIG)["train"]["timestamps"]["6"]
    events = events_of(block, "candidate", 7)
    labels = events.ratings >= 3.5
    stars = (5, 4, 3, 2, 1)
    chance = {
        (quarter, star): sum(p for v, p in mixture(quarter, 6).items() if v + star >= 6.9999)
        for quarter, star in itertools.product(range(4), stars)
    }
    of_item = {star: np.mean([chance[quarter, star] for quarter in range(4)]) for star in stars}
    of_user = [
        sum(ITEM_SHARES[star] * chance[quarter, star] for star in stars) for quarter in range(4)
    ]
    by_item = np.array([of_item[star] for star in item_ratings(events.items)])
    assert_figures(best["item_alone"], labels, by_item)
    known = quarters[events.users, events.categories]
    by_user = np.array([*of_user, np.nan])[known]
    clear = known >= 0
    entropy = -np.log(np.where(labels, by_user, 1 - by_user)[clear]).mean()
    rate = labels[clear].mean()
    entropy /= -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    # Some quarters are unclear from the data alone.
    assert best["user_alone"]["normalised_entropy"] == pytest.approx(entropy, abs=0.02)
    assert best["normalised_entropy"] < best["user_alone"]["normalised_entropy"] < 1
    assert best["normalised_entropy"] < best["item_alone"]["normalised_entropy"] < 1


def pairwise_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in order; ties count half."""
    levels = np.unique(scores)
    positives = [(scores[labels] == level).sum() for level in levels]
    negatives = [(scores[~labels] == level).sum() for level in levels]
    wins = sum(
        positive * negative * (1.0 if high > low else 0.5 if high == low else 0.0)
        for (high, positive), (low, negative) in itertools.product(
            enumerate(positives), enumerate(negatives)
        )
    )
    return wins / (sum(positives) * sum(negatives))


def test_no_positive_at_all_has_no_auc() -> None:
    tallies = np.zeros((CONFIG.timestamps + 2, 4, 10, 5), np.int64)
    tallies[1, 3, :, 4] = 5
    best = summary([label_counts(tallies, CONFIG)], CONFIG)
    assert best["train"]["rate"] == 0
    assert best["train"]["auc"] is None
    assert best["train"]["normalised_entropy"] is None
    assert best["eval"]["candidates"] == 0
