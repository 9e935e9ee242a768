"""Logs with the quirks of public ones, drawn from known click models, as text.

The true logit of every row is known, so the AUC of ranking by it is too: no model can expect more
than that on the same rows. NumPy alone; a seed gives the same bytes on every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_GENRES = (
    *("Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller"),
)
_WORK = (
    "Private",
    "Self-emp-not-inc",
    "Local-gov",
    "?",
    "State-gov",
    "Self-emp-inc",
    "Federal-gov",
)
_SCHOOLS = (
    "HS-grad",
    "Some-college",
    "Bachelors",
    "Masters",
    "Assoc-voc",
    "11th",
    "10th",
    "Doctorate",
)
_JOBS = (
    "Prof-specialty",
    "Craft-repair",
    "Exec-managerial",
    "Adm-clerical",
    "Sales",
    "Other-service",
)


@dataclass(frozen=True)
class ExampleLog:
    """A log in memory.

    Attributes:
        lines: Its lines, the header first.
        logits: The true logit of each row, float64 [rows].
        labels: What was drawn from it, 0 or 1, float64 [rows].
        unwanted: Features of the guessed schema that a person would remove.
    """

    lines: list[str]
    logits: Doubles
    labels: Doubles
    unwanted: tuple[str, ...] = ()

    def edited(self, guessed: str) -> str:
        """Returns the schema that `preprocess.guess` has written without the unwanted features."""
        marks = [f'- {{name: "{name}",' for name in self.unwanted]
        lines = guessed.splitlines(keepends=True)
        return "".join(line for line in lines if not any(mark in line for mark in marks))


def counts_log(rows: int, seed: int) -> ExampleLog:
    """A log like Criteo's as libraries ship it: a header, counts such as `260.0`, hashes, gaps."""
    dice = np.random.default_rng([seed, 0])
    counts = np.rint(np.exp(dice.normal(1.5, 1.2, (rows, 4))))
    ids = _skewed(dice, rows, (1000, 300, 40, 30, 15))
    logits = -1.5 + 0.5 * (np.log1p(counts) - 1.6) @ np.array([1.0, -0.6, 0.3, 0.0])
    logits += _effects(dice, ids, 0.5) + _pair(dice, ids[:, 2], ids[:, 3], 0.8)
    labels = _drawn(dice, logits)
    # A gap carries no information: it is independent of all else but hides a count of weight 0.
    gaps = dice.random(rows) < 0.2
    names = [f"{(table + 1) * 2654435761 % 2**32:08x}"[:3] for table in range(ids.shape[1])]
    header = ",".join(["label", *(f"I{i + 1}" for i in range(4)), *(f"C{i + 1}" for i in range(5))])
    lines = [header]
    for label, numbers, gap, row in zip(labels, counts, gaps, ids):
        fields = [f"{number:.1f}" for number in numbers]
        fields[3] = "" if gap else fields[3]
        lines.append(
            ",".join([f"{label:.0f}", *fields, *(f"{n}{i:05x}" for n, i in zip(names, row))])
        )
    return ExampleLog(lines, logits, labels)


def people_log(rows: int, seed: int) -> ExampleLog:
    """A log like UCI Adult: texts, blanks behind commas, `?` for what is unknown, label `>50K`."""
    dice = np.random.default_rng([seed, 1])
    ages, hours = dice.integers(17, 80, rows), np.clip(dice.normal(40, 12, rows), 1, 99).astype(int)
    gains = np.where(dice.random(rows) < 0.1, np.exp(dice.normal(8, 1, rows)).astype(int), 0)
    ids = np.stack([dice.integers(0, len(w), rows) for w in (_WORK, _SCHOOLS, _JOBS)], axis=1)
    logits = -1.2 - ((ages - 48) / 18) ** 2 + (hours - 40) / 20 + 0.2 * np.log1p(gains)
    logits += _effects(dice, ids, 1.0) + _pair(dice, ids[:, 1], ids[:, 2], 0.6)
    labels = _drawn(dice, logits)
    lines = ["age, workclass, education, occupation, capital-gain, hours-per-week, income"]
    for age, (work, school, job), gain, hour, label in zip(ages, ids, gains, hours, labels):
        texts = f"{_WORK[work]}, {_SCHOOLS[school]}, {_JOBS[job]}"
        lines.append(f"{age}, {texts}, {gain}, {hour}, {'>50K' if label else '<=50K'}")
    return ExampleLog(lines, logits, labels)


def movies_log(rows: int, seed: int) -> ExampleLog:
    """A log like MovieLens: ratings, quoted titles with commas, genres such as `Action|Comedy`."""
    dice = np.random.default_rng([seed, 2])
    users, movies = 150, 200
    genres = dice.random((movies, len(_GENRES))) < 0.15
    genres[np.arange(movies), dice.integers(0, len(_GENRES), movies)] = True
    taste = dice.normal(0, 1, (users, len(_GENRES)))
    ids = _skewed(dice, rows, (users, movies))
    shares = genres / genres.sum(axis=1, keepdims=True)
    logits = (
        0.2 + _effects(dice, ids, 0.6) + 1.2 * np.sum(taste[ids[:, 0]] * shares[ids[:, 1]], axis=1)
    )
    labels = _drawn(dice, logits)
    ratings = np.where(
        labels, dice.choice([4.0, 4.5, 5.0], rows), dice.choice([1.0, 2.5, 3.0], rows)
    )
    texts = ["|".join(name for name, has in zip(_GENRES, row) if has) for row in genres]
    lines = ["userId,title,genres,rating,timestamp"]
    for row, ((user, movie), rating) in enumerate(zip(ids, ratings)):
        title = f'"Tale {movie}, The ({1950 + movie % 70})"'
        lines.append(f"{user},{title},{texts[movie]},{rating},{1_000_000_000 + 30 * row}")
    return ExampleLog(lines, logits, labels, unwanted=("timestamp weekday",))


EXAMPLES: dict[str, Callable[[int, int], ExampleLog]] = {
    "counts": counts_log,
    "people": people_log,
    "movies": movies_log,
}


def _skewed(dice: np.random.Generator, rows: int, sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Ids of which the low ones are frequent, int64 [rows, tables]."""
    return (dice.random((rows, len(sizes))) ** 2 * sizes).astype(np.int64)


def _effects(dice: np.random.Generator, ids: NDArray[np.int64], strength: float) -> Doubles:
    """The sum of an effect for each id of each table, float64 [rows]."""
    effects = np.zeros(len(ids))
    for column in ids.T:
        effects += strength * dice.normal(size=column.max() + 1)[column]
    return effects


def _pair(
    dice: np.random.Generator, one: NDArray[np.int64], other: NDArray[np.int64], strength: float
) -> Doubles:
    """The product of two hidden vectors of width 2 for each row, float64 [rows]."""
    left, right = (dice.normal(size=(ids.max() + 1, 2))[ids] for ids in (one, other))
    return strength * np.sum(left * right, axis=1)


def _drawn(dice: np.random.Generator, logits: Doubles) -> Doubles:
    return (dice.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(np.float64)
