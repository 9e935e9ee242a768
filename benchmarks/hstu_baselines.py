"""What HSTU is compared with: predictors of a label that learn from one timestamp after another.

Each is asked for the candidates of a timestamp before it learns from them. They see what HSTU sees,
the users' histories with the weights of the events, and of all earlier candidates the labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.config import ACTION_WEIGHTS, POSITIVE_RATING, StreamConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream

_LIKED = ACTION_WEIGHTS[3]  # the weight of an event that was rated 4 or more
_READ_AT_ONCE = 2048  # requests
_DAY = 86_400  # seconds
_ALL_COLUMNS = 7  # of `Candidates.dense`
_COUNTS, _COUNT_TABLES = 4, 3  # the first columns of `dense` and `ids`: all but what `helped` adds
_PRIORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # labels

Floats = NDArray[np.floating[Any]]


class Candidates(NamedTuple):
    """The candidates of a timestamp, C of them, as all but HSTU see them.

    Attributes:
        items: int32 [C].
        ids: int32 [C, 4]: item, category, last item of the user's history, user.
        dense: float32 [C, 7]: the time of day, as a point of a circle; logarithms of the numbers
            of events in the history, and of liked ones; the same two for the events in the
            candidate's category, and the share of the liked ones among these.
        labels: float32 [C].
        probabilities: float32 [C], the true ones.
        counts: Number of candidates of each request.
    """

    items: NDArray[np.int32]
    ids: NDArray[np.int32]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    counts: NDArray[np.int32]


class Predictor(Protocol):
    """Predicts the labels of candidates."""

    def predict(self, candidates: Candidates) -> Floats:
        """The probability of label 1 for each candidate, [C]."""

    def learn(self, candidates: Candidates) -> None:
        """Learns from the labels of a timestamp, each once."""


def read_candidates(
    stream: RequestStream, timestamp: int, part: str, max_history: int
) -> Candidates:
    """Reads all candidates of a timestamp.

    Args:
        stream: The data.
        timestamp: The timestamp.
        part: `train` or `eval`.
        max_history: Most events of a history, as for HSTU.
    """
    users = stream.users(timestamp, part)
    pieces = [
        candidates_of(
            stream.batch(users[start : start + _READ_AT_ONCE], timestamp, part, max_history),
            stream.config,
        )
        for start in range(0, len(users), _READ_AT_ONCE)
    ]
    return Candidates(*map(np.concatenate, zip(*pieces)))


def candidates_of(batch: RequestBatch, stream: StreamConfig) -> Candidates:
    """Makes one row for each candidate of a batch."""
    requests = len(batch.users)
    request = np.repeat(np.arange(requests), np.diff(batch.offsets))  # [n]
    category = batch.items // stream.items_per_category
    place = np.arange(len(batch.items))
    target = place >= (batch.offsets[1:] - batch.targets)[request]
    cell = request * stream.categories + category  # a request and a category
    cells = requests * stream.categories

    def count(mask: NDArray[np.bool_]) -> Floats:
        return np.bincount(cell[mask], minlength=cells).astype(np.float32)[cell[target]]

    row = request[target]
    events, liked = count(~target), count(~target & (batch.actions >= _LIKED))
    length = (np.diff(batch.offsets) - batch.targets).astype(np.float32)
    last = batch.items[np.maximum(batch.offsets[1:] - batch.targets - 1, batch.offsets[:-1])]
    angle = 2 * np.pi * (batch.times[target] % _DAY) / _DAY
    all_liked = np.bincount(request[~target & (batch.actions >= _LIKED)], minlength=requests)
    columns = (
        np.sin(angle),
        np.cos(angle),
        np.log1p(length[row]),
        np.log1p(all_liked[row]),
        np.log1p(events),
        np.log1p(liked),
        (liked + 1) / (events + 2),
    )
    dense = np.stack(columns, axis=1)
    items = batch.items[target]
    return Candidates(
        items=items,
        ids=np.stack([items, category[target], last[row], batch.users[row]], axis=1),
        dense=dense.astype(np.float32),
        labels=(batch.ratings >= POSITIVE_RATING).astype(np.float32),
        probabilities=batch.probabilities,
        counts=batch.targets,
    )


class GlobalRate:
    """Predicts the mean label so far for every candidate."""

    def __init__(self) -> None:
        self._labels, self._ones = 0, 0.0

    def predict(self, candidates: Candidates) -> Floats:
        """See `Predictor`."""
        rate = (self._ones + 0.5) / (self._labels + 1)
        return np.full(len(candidates.labels), rate)

    def learn(self, candidates: Candidates) -> None:
        """See `Predictor`."""
        self._labels += len(candidates.labels)
        self._ones += float(candidates.labels.sum())


class Popularity:
    """Predicts the mean label of the item so far, drawn towards the mean of all labels.

    That mean counts as much as a number of labels of the item: the number whose predictions of the
    timestamps so far had the least log loss.

    Args:
        items: Number of items.
    """

    def __init__(self, items: int) -> None:
        self._labels, self._ones = np.zeros(items), np.zeros(items)
        self._losses = np.zeros(len(_PRIORS))

    def predict(self, candidates: Candidates) -> Floats:
        """See `Predictor`."""
        return self._predict(candidates, _PRIORS[int(self._losses.argmin())])

    def learn(self, candidates: Candidates) -> None:
        """See `Predictor`."""
        for place, prior in enumerate(_PRIORS):
            p = self._predict(candidates, prior)
            self._losses[place] -= np.log(np.where(candidates.labels == 1, p, 1 - p)).sum()
        items = len(self._labels)
        self._labels += np.bincount(candidates.items, minlength=items)
        self._ones += np.bincount(candidates.items, candidates.labels, minlength=items)

    def _predict(self, candidates: Candidates, prior: float) -> Floats:
        rate = (self._ones.sum() + 0.5) / (self._labels.sum() + 1)
        ones, labels = self._ones[candidates.items], self._labels[candidates.items]
        return (ones + prior * rate) / (labels + prior)


class _ScaledRate:
    """Row-wise Adagrad, at a multiple of the dense weights' learning rate."""

    def __init__(self, factor: float) -> None:
        from dlrm.optim.adaptive_rows import RowWiseAdagrad

        self._rows, self._factor = RowWiseAdagrad(), factor
        self.state_columns = self._rows.state_columns

    def apply(self, rows: Any, state: Any, step: Any) -> Any:
        """See `RowOptimizer.apply`."""
        step = step._replace(learning_rate=step.learning_rate * self._factor)
        return self._rows.apply(rows, state, step)


class DlrmBaseline:
    """The DLRM of this project: tables of items, categories, last items and users, and counts.

    Its tables are those of items, categories and last items, its dense columns the time of day and
    the counts of the history. It is trained as HSTU is: one pass, row-wise Adagrad for the tables,
    Adam for the rest.

    Args:
        stream: The population.
        helped: Whether it has a table of users too, and the counts of events in the candidate's
            category: the product of history and candidate, made by hand.
        batch: Candidates of a step.
        dense_lr: Learning rate of Adam.
        table_lr: Learning rate of row-wise Adagrad.
        width: Values of a row.
        seed: Seed of the initial weights and of the order of the candidates.
    """

    def __init__(
        self,
        stream: StreamConfig,
        *,
        helped: bool,
        batch: int = 128,
        dense_lr: float = 1e-3,
        table_lr: float = 0.05,
        width: int = 32,
        seed: int = 0,
    ) -> None:
        from dlrm import embedding
        from dlrm.distributed.connect import connect
        from dlrm.optim.adaptive_dense import DenseAdam
        from dlrm.train.step import TrainingStep
        from model import DLRM

        self._batch, self._dense_lr = batch, dense_lr
        rows = (stream.items, stream.categories, stream.items, stream.users)
        self._tables = len(rows) if helped else _COUNT_TABLES
        self._columns = None if helped else _COUNTS
        self._order = np.random.default_rng(seed)
        collective = connect()
        tables = embedding.FusedTable(rows[: self._tables], width, seed)
        self._step = TrainingStep(
            DLRM((64, width), (128, 64, 1), seed=seed, dtype="float32"),
            embedding.create(
                "alltoall", tables, collective, optimizer=_ScaledRate(table_lr / dense_lr)
            ),
            DenseAdam(),
            collective,
            num_dense=_COUNTS if self._columns else _ALL_COLUMNS,
            local_batch=batch,
        )
        self._step.build()

    def predict(self, candidates: Candidates) -> Floats:
        """See `Predictor`."""
        from dlrm.metrics import probabilities

        dense, ids = self._inputs(candidates)
        logits = []
        for start in range(0, len(ids), self._batch):
            # The step takes whole batches: the last rows come twice.
            rows = np.minimum(np.arange(start, start + self._batch), len(ids) - 1)
            logits.append(self._step.score(dense[rows], ids[rows])[0])
        return probabilities(np.concatenate(logits)[: len(ids)])

    def learn(self, candidates: Candidates) -> None:
        """See `Predictor`; the last candidates, less than a batch, are left out."""
        dense, ids = self._inputs(candidates)
        order = self._order.permutation(len(ids))
        whole = len(order) // self._batch
        batches = order[: whole * self._batch].reshape(whole, self._batch)
        routes = self._step.route(ids[batches[0]])
        for number, rows in enumerate(batches):
            following = ids[batches[min(number + 1, whole - 1)]]
            _, routes = self._step.train(
                dense[rows], candidates.labels[rows], routes, following, self._dense_lr
            )

    def _inputs(self, candidates: Candidates) -> tuple[Floats, NDArray[np.int32]]:
        return candidates.dense[:, : self._columns], candidates.ids[:, : self._tables]
