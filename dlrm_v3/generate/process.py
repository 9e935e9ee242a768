"""The generative process: the events of a block of users, at all timestamps.

Steps follow one another, for what a user did sharpens what the user is interested in; within a step
all events of all users of the block are computed at once. A block depends on the settings and on
its first user alone. This module must not know files or other blocks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot, slots_of
from dlrm_v3.generate.tastes import ITEM_RATINGS, TENTHS, item_places, quarter_of, taste_table

STRONGEST_PRIOR = 500
"""The weight of a user's even interest in all categories is uniform from 1 to this, each step."""


class UserEvents(NamedTuple):
    """The events of consecutive users, each user's in the order of the slots.

    Attributes:
        history_lengths: int64 [users, slots], number of events.
        history_items: int32 [events], ids.
        history_ratings: float32 [events].
        candidate_lengths: int64 [users, slots], number of candidates.
        candidate_items: int32 [candidates], ids.
        candidate_ratings: float32 [candidates].
        candidate_probabilities: float32 [candidates], of a positive rating.
        tallies: int64 [slots, quarters, 10, 5], number of candidates by `TasteTable`'s axes.
    """

    history_lengths: NDArray[np.int64]
    history_items: NDArray[np.int32]
    history_ratings: NDArray[np.float32]
    candidate_lengths: NDArray[np.int64]
    candidate_items: NDArray[np.int32]
    candidate_ratings: NDArray[np.float32]
    candidate_probabilities: NDArray[np.float32]
    tallies: NDArray[np.int64]


class EventProcess:
    """Draws the events of blocks of users.

    Args:
        config: The settings.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._slots = slots_of(config)
        self._tables = {t: taste_table(t) for t in range(-1, config.timestamps)}
        kinds = config.categories_per_user
        # Of each of a user's categories: the first place of its quarter's tenths.
        self._tenths = np.array(
            [quarter_of(place, kinds) * TENTHS for place in range(kinds)], np.uint8
        )
        train = config.train_timestamps
        # In order of time; the evaluation comes between training and inference.
        self._steps = [
            *((t + 1, t) for t in range(-1, train)),
            (eval_slot(config), train),
            *((t + 1, t) for t in range(train, config.timestamps)),
        ]
        self._inference_slots = range(train + 1, config.timestamps + 1)

    def block(self, first_user: int, users: int) -> UserEvents:
        """Draws all events of users [first_user, first_user + users)."""
        config = self._config
        rng = np.random.Generator(
            np.random.Philox(key=np.array([config.seed, first_user], np.uint64))
        )
        keys = rng.random((users, config.categories))
        categories = np.argsort(keys, axis=1, kind="stable")[:, : config.categories_per_user]
        first_items = (categories * config.items_per_category).astype(np.int32)
        history_lengths, candidate_lengths = self._lengths(rng, users)
        history = _Places(history_lengths, 1)
        # Candidates come in lots of one size, which are copied whole.
        candidates = _Places(
            candidate_lengths, math.gcd(config.candidates, config.inference_candidates)
        )
        events = UserEvents(
            history_lengths=history_lengths,
            history_items=np.empty(history.end, np.int32),
            history_ratings=np.empty(history.end, np.float32),
            candidate_lengths=candidate_lengths,
            candidate_items=np.empty(candidates.end, np.int32),
            candidate_ratings=np.empty(candidates.end, np.float32),
            candidate_probabilities=np.empty(candidates.end, np.float32),
            tallies=np.zeros((self._slots, *self._tables[0].ratings.shape), np.int64),
        )
        interests = np.zeros(categories.shape, np.int64)  # events so far
        for slot, timestamp in self._steps:
            who = np.flatnonzero(candidate_lengths[:, slot])
            drawn, kept = history_lengths[who, slot], candidate_lengths[who, slot]
            inference = slot in self._inference_slots
            if inference:  # the history is a part of the candidates, else the other way round
                drawn, kept = kept, drawn
            items, tastes, counts = self._draw(
                rng, interests[who], first_items[who], drawn, timestamp
            )
            interests[who] += counts
            chosen = _sample(rng, drawn, kept)
            every, part = (items, tastes), (items[chosen], tastes[chosen])
            (past, past_tastes), (now, now_tastes) = (part, every) if inference else (every, part)
            table = self._tables[timestamp]
            places = history.of(who, slot)
            history.put(events.history_items, places, past)
            history.put(events.history_ratings, places, table.ratings.take(past_tastes))
            places = candidates.of(who, slot)
            candidates.put(events.candidate_items, places, now)
            candidates.put(events.candidate_ratings, places, table.ratings.take(now_tastes))
            candidates.put(
                events.candidate_probabilities, places, table.probabilities.take(now_tastes)
            )
            events.tallies[slot].flat = np.bincount(now_tastes, minlength=table.ratings.size)
        return events

    def _lengths(
        self, rng: np.random.Generator, users: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws the numbers of events and of candidates, int64 [users, slots] each.

        Both are zero where the user is not active.
        """
        config, shape = self._config, (users, self._slots)
        mean = config.events_per_step
        history = np.rint(rng.normal(mean, mean // 4, shape)).astype(np.int64)
        np.maximum(history, config.candidates + 1, out=history)
        candidates = np.full(shape, config.candidates)
        inference = slice(self._inference_slots.start, self._inference_slots.stop)
        candidates[:, inference] = config.inference_candidates
        history[:, inference] = np.minimum(history[:, inference], config.inference_candidates)
        history[:, eval_slot(config)] = config.candidates
        active = rng.random(shape) < config.user_share
        active[:, [0, eval_slot(config)]] = True
        return history * active, candidates * active

    def _draw(
        self,
        rng: np.random.Generator,
        interests: NDArray[np.int64],
        first_items: NDArray[np.int32],
        lengths: NDArray[np.int64],
        timestamp: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]:
        """Draws the events of one step, one user's behind the other's.

        Args:
            rng: The source of all random numbers.
            interests: [users, categories_per_user], events so far of each category.
            first_items: The same shape, the first item of each category.
            lengths: [users], number of events to draw.
            timestamp: The timestamp.

        Returns:
            The items; their places in a flattened `TasteTable`; and the number of events in each
            category, of the shape of `interests`.
        """
        config = self._config
        users, kinds = interests.shape
        events = int(lengths.sum())
        prior = rng.integers(1, STRONGEST_PRIOR + 1, (users, 1))
        shares = (prior / kinds + interests) / (prior + interests.sum(axis=1, keepdims=True))
        bounds = np.cumsum(shares, axis=1).astype(np.float32)
        uniform = rng.random(events, np.float32)
        cells = np.repeat(np.arange(users, dtype=np.int32) * kinds, lengths)
        for place in range(kinds - 1):
            cells += uniform >= np.repeat(bounds[:, place], lengths)  # user and category
        # The catalogue grows: items behind this one do not exist yet.
        known = config.items_per_category * max(timestamp + 1, 1) // config.timestamps
        items = rng.integers(0, known, events, np.int32)
        items += first_items.ravel().take(cells)
        tastes = rng.integers(0, TENTHS, events, np.uint8)
        tastes += np.tile(self._tenths, users).take(cells)
        tastes *= len(ITEM_RATINGS)
        tastes += item_places(items, config.seed)
        counts = np.bincount(cells, minlength=interests.size).reshape(interests.shape)
        return items, tastes, counts


class _Places:
    """Where the events of each user and slot lie in the columns of a block.

    Args:
        lengths: [users, slots], number of events.
        lot: A divisor of all lengths; so many events at a time are copied.
    """

    def __init__(self, lengths: NDArray[np.int64], lot: int) -> None:
        self._lengths = lengths // lot
        self._lot = lot
        ends = np.cumsum(self._lengths.ravel())
        self._starts = ends.reshape(lengths.shape) - self._lengths
        self.end = int(ends[-1]) * lot

    def of(self, users: NDArray[np.intp], slot: int) -> NDArray[np.int64]:
        """The places of all lots of these users in a slot."""
        starts, lengths = self._starts[users, slot], self._lengths[users, slot]
        places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        places += np.arange(len(places))
        return places

    def put(self, column: NDArray[Any], places: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Sets the lots at these places."""
        if self._lot == 1:
            column[places] = values
        else:
            column.reshape(-1, self._lot)[places] = values.reshape(-1, self._lot)


def _sample(
    rng: np.random.Generator, lengths: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draws events without replacement, in random order.

    It is Fisher and Yates' shuffle, as far as needed, of all users at once.

    Args:
        rng: The source of all random numbers.
        lengths: [users], number of events that each user has, one user's behind the other's.
        sizes: [users], number of events to draw of each user, at most its `lengths`.

    Returns:
        The places of the events drawn, int64 [sum of sizes].
    """
    users, most, longest = len(lengths), int(sizes.max(initial=0)), int(lengths.max(initial=0))
    # One row a place and one column a user, so that a row of random numbers serves a round.
    order = np.repeat(np.arange(longest, dtype=np.int32)[:, None], users, axis=1).ravel()
    uniform = rng.random((most, users))
    uniform *= np.maximum(lengths - np.arange(most)[:, None], 1)
    others = uniform.astype(np.int64)
    others *= users
    for place in range(most):
        here = order[place * users : (place + 1) * users]
        there = others[place]
        there += np.arange(place * users, (place + 1) * users)
        chosen = order[there]
        order[there] = here
        here[:] = chosen
    drawn = order[: most * users].reshape(most, users).T + (np.cumsum(lengths) - lengths)[:, None]
    return drawn[np.arange(most) < sizes[:, None]]
