"""The generative process: the events of a block of users, at all timestamps.

Steps follow one another, for what a user did sharpens what the user is interested in; within a step
all events of all users of the block are computed at once. A block depends on the settings and on
its first user alone. This module must not know files or other blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot, slots_of
from dlrm_v3.generate.tastes import item_places, quarter_of, taste_table

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


class _Draws(NamedTuple):
    """The events drawn in one step: n of them, those of each of its users in a row.

    Attributes:
        items: int32 [n], ids.
        tastes: int64 [n], place in a flattened `TasteTable`.
    """

    items: NDArray[np.int32]
    tastes: NDArray[np.intp]


class EventProcess:
    """Draws the events of blocks of users.

    Args:
        config: The settings.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._slots = slots_of(config)
        self._tables = {t: taste_table(t) for t in range(-1, config.timestamps)}
        self._quarters = np.array(
            [
                quarter_of(place, config.categories_per_user)
                for place in range(config.categories_per_user)
            ]
        )
        train = config.train_timestamps
        # In order of time; the evaluation comes between training and inference.
        self._steps = [
            *((t + 1, t) for t in range(-1, train)),
            (eval_slot(config), train),
            *((t + 1, t) for t in range(train, config.timestamps)),
        ]

    def block(self, first_user: int, users: int) -> UserEvents:
        """Draws all events of users [first_user, first_user + users)."""
        config = self._config
        rng = np.random.Generator(
            np.random.Philox(key=np.array([config.seed, first_user], np.uint64))
        )
        keys = rng.random((users, config.categories))
        categories = np.argsort(keys, axis=1, kind="stable")[:, : config.categories_per_user]
        first_items = categories * config.items_per_category  # [users, categories_per_user]
        history_lengths, candidate_lengths = self._lengths(rng, users)
        history = _Column(history_lengths)
        candidates = _Column(candidate_lengths)
        probabilities = np.empty(len(candidates.items), np.float32)
        tallies = np.zeros((self._slots, *self._tables[0].ratings.shape), np.int64)
        interests = np.zeros(categories.shape, np.int64)  # events so far
        for slot, timestamp in self._steps:
            inference = timestamp >= config.train_timestamps and slot != eval_slot(config)
            who = np.flatnonzero(candidate_lengths[:, slot])
            few, many = history_lengths[who, slot], candidate_lengths[who, slot]
            if not inference:
                few, many = many, few
            draws, counts = self._draw(rng, interests[who], first_items[who], many, timestamp)
            interests[who] += counts
            chosen = _sample(rng, many, few)
            table = self._tables[timestamp]
            ratings = table.ratings.ravel()
            all_of_it, part = (candidates, history) if inference else (history, candidates)
            all_of_it.fill(who, slot, draws.items, ratings[draws.tastes])
            part.fill(who, slot, draws.items[chosen], ratings[draws.tastes[chosen]])
            tastes = draws.tastes if inference else draws.tastes[chosen]
            probabilities[candidates.places(who, slot)] = table.probabilities.ravel()[tastes]
            tallies[slot] = np.bincount(tastes, minlength=ratings.size).reshape(tallies[slot].shape)
        return UserEvents(
            history_lengths,
            history.items,
            history.ratings,
            candidate_lengths,
            candidates.items,
            candidates.ratings,
            probabilities,
            tallies,
        )

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
        # Slot t + 1 is timestamp t.
        inference = slice(config.train_timestamps + 1, config.timestamps + 1)
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
        first_items: NDArray[np.int64],
        lengths: NDArray[np.int64],
        timestamp: int,
    ) -> tuple[_Draws, NDArray[np.int64]]:
        """Draws the events of one step.

        Args:
            rng: The source of all random numbers.
            interests: [users, categories_per_user], events so far of each category.
            first_items: The same shape, the first item of each category.
            lengths: [users], number of events to draw.
            timestamp: The timestamp.

        Returns:
            The events, and their number in each category, of the shape of `interests`.
        """
        config = self._config
        users, kinds = interests.shape
        events = int(lengths.sum())
        prior = rng.integers(1, STRONGEST_PRIOR + 1, (users, 1))
        shares = (prior / kinds + interests) / (prior + interests.sum(axis=1, keepdims=True))
        bounds = np.cumsum(shares, axis=1)[:, :-1].astype(np.float32)
        uniform = rng.random(events, np.float32)
        cells = np.repeat(np.arange(users) * kinds, lengths)  # user and category of each event
        for place in range(kinds - 1):
            cells += uniform >= np.repeat(bounds[:, place], lengths)
        # The catalogue grows: items behind this one do not exist yet.
        known = config.items_per_category * max(timestamp + 1, 1) // config.timestamps
        items = rng.integers(0, known, events, np.int32)
        items += first_items.astype(np.int32).ravel()[cells]
        tastes = (np.tile(self._quarters * 10, users))[cells]
        tastes += rng.integers(0, 10, events, np.uint8)
        tastes *= 5
        tastes += item_places(items, config.seed)
        counts = np.bincount(cells, minlength=interests.size).reshape(interests.shape)
        return _Draws(items, tastes), counts


class _Column:
    """Items and ratings of a block, filled slot by slot.

    Args:
        lengths: [users, slots], number of events.
    """

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self._lengths = lengths
        ends = np.cumsum(lengths.ravel())
        self._starts = ends.reshape(lengths.shape) - lengths
        self.items = np.empty(ends[-1], np.int32)
        self.ratings = np.empty(ends[-1], np.float32)

    def places(self, users: NDArray[np.intp], slot: int) -> NDArray[np.int64]:
        """The places of all events of these users in a slot."""
        return _ranges(self._starts[users, slot], self._lengths[users, slot])

    def fill(
        self,
        users: NDArray[np.intp],
        slot: int,
        items: NDArray[np.int32],
        ratings: NDArray[np.float32],
    ) -> None:
        """Sets all events of these users in a slot."""
        places = self.places(users, slot)
        self.items[places] = items
        self.ratings[places] = ratings


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers starts[0], starts[0] + 1, ..., then those from starts[1] on, and so on."""
    firsts = np.cumsum(lengths) - lengths
    numbers = np.repeat(starts - firsts, lengths)
    numbers += np.arange(len(numbers))
    return numbers


def _sample(
    rng: np.random.Generator, lengths: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draws events without replacement, in random order.

    Args:
        rng: The source of all random numbers.
        lengths: [users], number of events that each user has, one user's behind the other's.
        sizes: [users], number of events to draw of each user.

    Returns:
        The places of the events drawn, int64 [sum of sizes].
    """
    longest = int(lengths.max(initial=0))
    columns = np.arange(longest, dtype=np.uint64)
    # Random words that end with their own column, sorted: the columns in random order.
    mask = np.uint64((1 << longest.bit_length()) - 1)
    words = rng.bit_generator.random_raw(len(lengths) * longest).reshape(len(lengths), longest)
    words &= ~mask
    words |= columns
    words[columns >= lengths[:, None].astype(np.uint64)] = np.iinfo(np.uint64).max
    words.sort(axis=1)
    order = (words & mask).astype(np.int64)
    order += (np.cumsum(lengths) - lengths)[:, None]
    return order[np.arange(longest) < sizes[:, None]]
