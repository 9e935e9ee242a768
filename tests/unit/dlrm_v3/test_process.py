"""The events drawn, against the formulas of the process: each by the distance of two histograms."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot
from dlrm_v3.generate.process import EventProcess, UserEvents
from dlrm_v3.generate.tastes import item_places

pytestmark = pytest.mark.one_profile

CONFIG = StreamConfig(
    users=8000,
    items=20_000,
    categories=16,
    timestamps=20,
    train_timestamps=18,
    candidates=8,
    inference_candidates=64,
    shards=1,
    written_shards=1,
    events_per_item=200,
)
EVAL = eval_slot(CONFIG)
ITEM_SHARES = {5: 0.2, 4: 0.25, 3: 0.25, 2: 0.2, 1: 0.1}
USERS = 4000


class Events(NamedTuple):
    """Events of one slot: of all users, or of those that are active; one user's in a row."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray

    @property
    def categories(self) -> np.ndarray:
        return self.items // (CONFIG.items // CONFIG.categories)


@pytest.fixture(scope="module")
def block() -> UserEvents:
    return EventProcess(CONFIG).block(0, USERS)


def events_of(block: UserEvents, kind: str, slot: int) -> Events:
    lengths = getattr(block, f"{kind}_lengths")
    users, slots = np.indices(lengths.shape)
    chosen = np.repeat(slots.ravel(), lengths.ravel()) == slot
    return Events(
        np.repeat(users.ravel(), lengths.ravel())[chosen],
        getattr(block, f"{kind}_items")[chosen],
        getattr(block, f"{kind}_ratings")[chosen],
    )


def assert_shares(counts: object, shares: object) -> None:
    """Checks that counts could come from these shares, by the total variation distance.

    The bound is the mean distance of counts that do, and some four standard deviations of it.
    """
    counts, shares = np.asarray(counts, float), np.asarray(shares, float)
    assert math.isclose(shares.sum(), 1, abs_tol=1e-9)
    samples = counts.sum()
    assert samples > 300
    assert not counts[shares == 0].any()
    distance = np.abs(counts / samples - shares).sum() / 2
    deviations = np.sqrt(shares * (1 - shares) / samples)
    usual = math.sqrt(2 / math.pi) * deviations.sum() / 2
    bound = usual + 2 * math.sqrt((deviations**2).sum())
    assert distance <= bound, f"distance {distance:.5f}, bound {bound:.5f}: {counts / samples}"


def test_the_bound_finds_a_wrong_share() -> None:
    counts = np.random.default_rng(1).multinomial(100_000, [0.2, 0.25, 0.25, 0.2, 0.1])
    assert_shares(counts, [0.2, 0.25, 0.25, 0.2, 0.1])
    with pytest.raises(AssertionError):
        assert_shares(counts, [0.21, 0.24, 0.25, 0.2, 0.1])


def item_ratings(items: np.ndarray, seed: int = CONFIG.seed) -> np.ndarray:
    return 5 - item_places(items, seed).astype(int)


def test_ratings_of_items() -> None:
    items = np.arange(1_000_000, dtype=np.int32)
    ratings = item_ratings(items)
    shares = np.array([ITEM_SHARES[rating] for rating in range(1, 6)])
    assert_shares(np.bincount(ratings, minlength=6)[1:], shares)
    # Neighbours are independent of each other, and so are seeds.
    for other in (ratings[1:], item_ratings(items, CONFIG.seed + 1)[:-1]):
        pairs = np.bincount((ratings[:-1] - 1) * 5 + other - 1, minlength=25)
        assert_shares(pairs, np.outer(shares, shares).ravel())
    assert (item_ratings(items[500:600]) == ratings[500:600]).all()


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value / math.sqrt(2)) / 2 + 0.5 for value in x])


def length_shares(most: int) -> np.ndarray:
    """Of round(normal(25, 6)), at least 9 and at most `most`: shares of 0, 1, ..., `most`."""
    mean, deviation, least = 25, 6, 9
    edges = np.arange(most + 2) - 0.5
    below = normal_cdf((edges - mean) / deviation)
    below[: least + 1], below[-1] = 0, 1
    return np.diff(below)


@pytest.mark.parametrize("slot", [0, 1, 18, 20])
def test_lengths(block: UserEvents, slot: int) -> None:
    assert (CONFIG.items, CONFIG.candidates, CONFIG.events_per_step) == (20_000, 8, 25)
    lengths = block.history_lengths[:, slot]
    assert_shares(np.bincount(lengths[lengths > 0], minlength=65), length_shares(64))


def test_the_evaluation_has_one_event_a_candidate(block: UserEvents) -> None:
    assert (block.history_lengths[:, EVAL] == CONFIG.candidates).all()
    assert (block.candidate_lengths[:, EVAL] == CONFIG.candidates).all()


def test_an_inference_history_is_no_longer_than_its_candidates() -> None:
    config = CONFIG.__class__(**{**CONFIG.__dict__, "inference_candidates": 20})
    block = EventProcess(config).block(0, 300)
    assert block.history_lengths[:, 19:21].max() == 20
    assert block.history_lengths[:, :19].max() > 30


def test_who_is_active(block: UserEvents) -> None:
    active = block.candidate_lengths > 0
    assert ((block.history_lengths > 0) == active).all()
    assert active[:, [0, EVAL]].all()
    assert set(np.unique(block.candidate_lengths[:, 19:21])) == {0, 64}
    assert set(np.unique(block.candidate_lengths[:, 1:19])) == {0, 8}
    # The number of active timestamps of a user is binomial.
    counts = np.bincount(active[:, 1:-1].sum(axis=1), minlength=21)
    assert_shares(counts, binomial(np.array([20]), np.array([0.7]))[0])


def test_categories_of_a_user(block: UserEvents) -> None:
    counts = category_counts(events_of(block, "history", 0))
    assert ((counts > 0).sum(axis=1) <= 4).all()
    assert_shares((counts > 0).sum(axis=0), np.full(16, 1 / 16))
    # Four different ones, so that a pair occurs with the share of pairs: 6 of 120 a user.
    four = counts[(counts > 0).sum(axis=1) == 4] > 0
    pairs = four.T.astype(int) @ four.astype(int)
    assert_shares(pairs[np.triu_indices(16, 1)], np.full(120, 1 / 120))


def category_counts(events: Events) -> np.ndarray:
    """int64 [users, categories]."""
    cells = events.users * CONFIG.categories + events.categories
    return np.bincount(cells, minlength=USERS * CONFIG.categories).reshape(USERS, -1)


def binomial(trials: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Shares of 0, 1, ... successes, [n, most trials + 1]."""
    logs = np.cumsum([0, *np.log(np.arange(1, trials.max() + 1))])  # of factorials
    k = np.arange(trials.max() + 1)
    rest = np.maximum(trials[:, None] - k, 0)
    ways = logs[trials][:, None] - logs[k] - logs[rest]
    chances = ways + k * np.log(share)[:, None] + rest * np.log1p(-share)[:, None]
    return np.where(k <= trials[:, None], np.exp(chances), 0)


@pytest.mark.parametrize("slot", [0, 1, 9, EVAL, 20])
def test_interests_are_reinforced(block: UserEvents, slot: int) -> None:
    """The events in one category follow the mixture of 500 binomials that the counts before imply.

    Where a count falls in the cumulated distribution of its own user is then uniform.
    """
    counts = {step: category_counts(drawn(block, step)) for step in IN_TIME}
    before = sum(
        (counts[step] for step in IN_TIME[: IN_TIME.index(slot)]), np.zeros_like(counts[0])
    )
    ever = np.sum(list(counts.values()), axis=0)
    category = (ever > 0).argmax(axis=1)  # the user's first in order of ids
    users = np.flatnonzero(counts[slot].sum(axis=1))[:800]
    rows, known = np.arange(len(users)), before[users, category[users]]
    events, happened = counts[slot][users].sum(axis=1), counts[slot][users, category[users]]
    chances = np.zeros((len(users), events.max() + 1))
    for alpha in range(1, 501):
        share = (alpha / 4 + known) / (alpha + before[users].sum(axis=1))
        chances += binomial(events, share) / 500
    cumulated = np.cumsum(chances, axis=1)
    below = np.where(happened > 0, cumulated[rows, np.maximum(happened - 1, 0)], 0)
    uniform = np.random.default_rng(slot).random(len(users))
    places = below + uniform * (cumulated[rows, happened] - below)
    assert_shares(np.histogram(places, 20, (0, 1 + 1e-9))[0], np.full(20, 1 / 20))


@pytest.mark.parametrize("slot", [1, 9, 20])
def test_a_preference_is_kept_as_strongly_as_stated(block: UserEvents, slot: int) -> None:
    """What a user prefers by chance, the user goes on to prefer: by C / (alpha + C) after C events.

    Events beyond an even share, times those before, against their mean by the formula.
    """
    counts = {step: category_counts(drawn(block, step)) for step in IN_TIME}
    before = np.sum([counts[step] for step in IN_TIME[: IN_TIME.index(slot)]], axis=0)
    mine = np.sum(list(counts.values()), axis=0) > 0
    total, events = before.sum(axis=1), counts[slot].sum(axis=1)
    weight = np.mean([1 / (alpha + total) for alpha in range(1, 501)], axis=0)
    surplus = (before - total[:, None] / 4)[mine]
    now = (counts[slot] - events[:, None] / 4)[mine]
    stated = ((events * weight)[:, None] * (before - total[:, None] / 4))[mine]
    assert (surplus @ now) / (surplus @ stated) == pytest.approx(1, abs=0.15)


IN_TIME = [*range(19), EVAL, 19, 20]


def drawn(block: UserEvents, slot: int) -> Events:
    """All events of a step; at inference the candidates are, the history is a sample of them."""
    return events_of(block, "candidate" if slot in (19, 20) else "history", slot)


@pytest.mark.parametrize("slot", [0, 2, 10, 18, EVAL, 20])
def test_the_catalogue_grows(block: UserEvents, slot: int) -> None:
    """At timestamp t a category has max(t + 1, 1) of its 20 twentieths, all alike."""
    timestamp = 18 if slot == EVAL else slot - 1
    twentieths = drawn(block, slot).items % 1250 * 20 // 1250
    known = max(timestamp + 1, 1)
    # An item a twentieth begins with may be cut: 1250 / 20 is no whole number.
    exact = np.bincount(np.arange(1250 * known // 20) * 20 // 1250, minlength=20)
    assert_shares(np.bincount(twentieths, minlength=20), exact / exact.sum())


def test_a_share_of_the_items_is_new_each_time(block: UserEvents) -> None:
    """Of the candidates of t, 1 / (t + 1) could not have been seen before; fewer and fewer."""
    for timestamp in (1, 4, 9, 17, 19):
        items = events_of(block, "candidate", timestamp + 1).items % 1250
        known, new = 1250 * timestamp // 20, 1250 * (timestamp + 1) // 20
        cold = np.count_nonzero(items >= known)
        assert_shares([cold, len(items) - cold], [1 - known / new, known / new])
        assert 1 - known / new == pytest.approx(1 / (timestamp + 1), rel=0.02)


def keys_of(events: Events) -> np.ndarray:
    """One number for user, item and rating."""
    ratings = events.ratings.view(np.int32).astype(np.int64)
    return np.unique(ratings, return_inverse=True)[1] + 1000 * (
        events.items + CONFIG.items * events.users.astype(np.int64)
    )


@pytest.mark.parametrize("slot", [0, 7, EVAL, 20])
def test_a_part_is_drawn_without_replacement(block: UserEvents, slot: int) -> None:
    history, candidates = (events_of(block, kind, slot) for kind in ("history", "candidate"))
    every, part = (candidates, history) if slot in (19, 20) else (history, candidates)
    both = Events(*map(np.concatenate, zip(every, part)))
    keys = keys_of(both)
    values, counts = np.unique(keys[: len(every.users)], return_counts=True)
    drawn_values, drawn_counts = np.unique(keys[len(every.users) :], return_counts=True)
    places = np.searchsorted(values, drawn_values)
    assert (values[places] == drawn_values).all()
    assert (drawn_counts <= counts[places]).all()
    # Every place of the step is drawn as often, whichever place among those drawn.
    once = np.isin(keys, values[counts == 1])
    place = np.concatenate([place_in_user(every.users), place_in_user(part.users)])
    lengths = np.bincount(every.users, minlength=USERS)
    where = dict(zip(keys[: len(every.users)], place[: len(every.users)]))
    chosen = np.flatnonzero(once)[np.flatnonzero(once) >= len(every.users)]
    found = np.array([where[keys[index]] for index in chosen])
    for first in (place[chosen] == 0, place[chosen] == 5):
        relative = (found[first] + 0.5) / lengths[both.users[chosen][first]]
        assert_shares(np.histogram(relative, 8, (0, 1))[0], place_shares(lengths, 8))


def place_in_user(users: np.ndarray) -> np.ndarray:
    starts = np.searchsorted(users, users)
    return np.arange(len(users)) - starts


def place_shares(lengths: np.ndarray, bins: int) -> np.ndarray:
    """The shares of bins of the relative places of users of these lengths."""
    shares = np.zeros(bins)
    for length, users in zip(*np.unique(lengths[lengths > 0], return_counts=True)):
        places = (np.arange(length) + 0.5) / length
        shares += users * np.histogram(places, bins, (0, 1))[0] / length
    return shares / shares.sum()
