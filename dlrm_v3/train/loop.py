"""The loop around the training step: when to train, evaluate, save and stop, and why.

Timestamps come in order. Each is trained on once; then the next one is predicted, before it is
trained on in turn. Files, and how a step computes its results, are no concern of this module.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed.collective import Collective
from dlrm.train.callback import Callback
from dlrm.train.health import IDS_OUTSIDE, NOT_FINITE, Health
from dlrm.train.loop import (
    ELSEWHERE,
    SIGNAL_INTERVAL,
    Outcome,
    Progress,
    StopRequestedError,
    TrainingError,
    with_next,
)
from dlrm.train.step import Routes
from dlrm_v3.config import POSITIVE_RATING, LearningConfig
from dlrm_v3.model.inputs import ModelInputs
from dlrm_v3.train.evaluation import LENGTH, StreamEvaluation, StreamTally, figures
from dlrm_v3.train.plan import Share, StreamPlan, dropout_key
from dlrm_v3.train.prepare import Prepared, ReadShares
from dlrm_v3.train.step import HstuStep

LOWER_LR = "lower --dense_lr or --table_lr"


class Lifetime(NamedTuple):
    """What all evaluations add up to, the same on every rank; checkpoints hold it.

    Attributes:
        sums: float64 [2, LENGTH], the sums of a `StreamTally`.
        timestamp: int64 [1], the last timestamp that is in them; -1 for none. A run that resumes
            before its evaluation makes it again, but does not count it twice.
    """

    sums: tf.Variable
    timestamp: tf.Variable

    @classmethod
    def empty(cls) -> Lifetime:
        """That of no evaluation."""
        return cls(
            tf.Variable(tf.zeros([2, LENGTH], tf.float64), trainable=False),
            tf.Variable(tf.constant([-1], tf.int64), trainable=False),
        )

    def named(self) -> dict[str, tf.Variable]:
        """The variables by their names in a checkpoint."""
        return {"lifetime.sums": self.sums, "lifetime.timestamp": self.timestamp}

    def forget(self) -> None:
        """Begins anew."""
        self.sums.assign(tf.zeros_like(self.sums))
        self.timestamp.assign([-1])

    def add(self, sums: NDArray[np.float64], timestamp: int) -> NDArray[np.float64]:
        """Adds the evaluation of a timestamp, once; returns all sums."""
        if int(self.timestamp[0]) != timestamp:
            self.sums.assign_add(sums)
            self.timestamp.assign([timestamp])
        total: NDArray[np.float64] = self.sums.numpy()
        return total


class StreamTrainer:
    """Trains and evaluates a model with its tables, together with the trainers of other ranks.

    Args:
        step: The step.
        lifetime: The sums of all evaluations, which the step's state holds too.
        plan: Which requests each step takes.
        read: Reads and prepares batches, ahead of their use.
        collective: The ranks.
        learning: Learning rates, and the batches of an evaluation.
        task: Index of the task that is evaluated among the model's.
        seed: Seed of the dropout.
        early_stop: Number of steps after which to stop; -1 for none.
        log_interval: Number of steps between two calls of `Callback.step`.
        checkpoint_timestamps: Number of timestamps between two calls of `Callback.save`.

    Attributes:
        step: As given.
        lifetime: As given.
    """

    def __init__(
        self,
        step: HstuStep,
        lifetime: Lifetime,
        plan: StreamPlan,
        read: ReadShares,
        collective: Collective,
        learning: LearningConfig,
        *,
        task: int = 0,
        seed: int = 0,
        early_stop: int = -1,
        log_interval: int = 1,
        checkpoint_timestamps: int = 3,
    ) -> None:
        self.step = step
        self.lifetime = lifetime
        self._plan = plan
        self._read = read
        self._collective = collective
        self._learning = learning
        self._task = task
        self._seed = seed
        self._early_stop = early_stop
        self._log_interval = log_interval
        self._checkpoint_timestamps = checkpoint_timestamps

    def train(self, callback: Callback, *, first_step: int = 0) -> Outcome:
        """Trains until the last timestamp, `early_stop` or a signal.

        Args:
            callback: Receives losses, evaluations and states to save.
            first_step: Number of steps done by the run that this one continues.

        Raises:
            TrainingError: On every rank, before the update, for a loss or gradient that is not
                finite or an id outside its table.
        """
        progress = Progress(first_step)
        try:
            reason = self._train(progress, callback)
            interrupted = False
        except StopRequestedError:
            reason, interrupted = "a signal", True
        callback.save(progress.step)
        return Outcome(reason, progress.step, progress.evaluation_seconds, interrupted)

    def evaluate(
        self, shares: Iterator[Share], timestamp: int, step: int, callback: Callback
    ) -> StreamEvaluation:
        """Predicts the candidates of a timestamp, and compares them with what came.

        Args:
            shares: This rank's requests; the same number of batches on every rank.
            timestamp: Their timestamp.
            step: Number of steps done before.
            callback: Receives the progress and the result.

        Raises:
            StopRequestedError: On every rank, if one was asked to stop.
            TrainingError: On every rank, for a score that is not finite or an id outside its table.
        """
        start = time.perf_counter()
        where = f"evaluation of timestamp {timestamp} after step {step}"
        tally, bad, first_bad = StreamTally(), 0, ""
        for number, batch in enumerate(self._read(shares)):
            callback.progress(f"{where}, batch {number}")
            if number % SIGNAL_INTERVAL == 0:
                signal = tf.constant(int(callback.stop_requested()))
                if int(self._collective.sum(signal, name="evaluation.signal")):
                    raise StopRequestedError
            logits, bad_ids = self.step.score(batch.inputs)
            labels = (batch.ratings >= POSITIVE_RATING).astype(np.float32)
            tally.add(
                logits.numpy()[:, self._task], labels, batch.probabilities, batch.inputs.targets
            )
            if int(bad_ids) and not bad:
                first_bad = self._outside(batch.inputs)
            bad += int(bad_ids)
        if int(self._collective.sum(tf.constant(bad), name="evaluation.bad")):
            raise TrainingError(f"{where}: {IDS_OUTSIDE}; {first_bad or ELSEWHERE}")
        sums = self._collective.sum(tf.constant(tally.sums), name="evaluation.sums").numpy()
        window = figures(sums)
        if window.model.candidates and not math.isfinite(window.model.log_loss):
            raise TrainingError(f"{where}: a score is not finite; {LOWER_LR}")
        result = StreamEvaluation(
            step=step,
            auc=window.model.auc,
            log_loss=window.model.log_loss,
            normalised_entropy=window.model.normalised_entropy,
            samples=window.model.candidates,
            seconds=time.perf_counter() - start,
            timestamp=timestamp,
            window=window,
            lifetime=figures(self.lifetime.add(sums, timestamp)),
        )
        callback.evaluation(result)
        return result

    def _train(self, progress: Progress, callback: Callback) -> str:
        """The loop itself. Returns why it ended; keeps `progress` up to date for its caller."""
        batches = with_next(self._read(self._plan.training(progress.step)))
        routes: Routes | None = None
        signal: tf.Tensor | float = 0.0
        while True:
            # Evaluate first: a run that resumes at the end of a timestamp makes the evaluation due.
            position = self._plan.position(progress.step)
            if progress.step > 0 and position.next_sample == 0:
                shares = self._plan.evaluation(position.epoch, self._learning.eval_batches)
                result = self.evaluate(shares, position.epoch, progress.step, callback)
                progress.evaluation_seconds += result.seconds

            # The end.
            if 0 < self._early_stop <= progress.step:
                return f"{progress.step} steps"
            batch, following = next(batches, (None, None))
            if batch is None or following is None:
                return f"timestamp {self._plan.last}, the last one to train on"
            # Every rank knows of a signal by the step before, so none waits for this step's end.
            if float(signal):
                raise StopRequestedError

            # One step.
            callback.progress(f"step {progress.step} of timestamp {position.epoch}")
            if routes is None:
                routes = self.step.route(batch.inputs)
            asked = float(callback.stop_requested())
            health, routes = self._checked_step(progress.step, batch, routes, following, asked)
            signal = health.signal
            progress.step += 1

            # Report and save.
            if progress.step % self._log_interval == 0:
                callback.step(progress.step, float(health.loss), self._learning.dense_lr)
            position = self._plan.position(progress.step)
            done = position.epoch - self._plan.first
            is_due = position.next_sample == 0 and done % self._checkpoint_timestamps == 0
            if is_due and progress.step < self._plan.steps:  # the last is saved once evaluated
                callback.save(progress.step)

    def _checked_step(
        self, step: int, batch: Prepared, routes: Routes, following: Prepared, signal: float
    ) -> tuple[Health, Routes]:
        """Takes one step; turns a check that failed in it into a message for the user."""
        key = dropout_key(self._seed, step)
        try:
            return self.step.train(
                batch.inputs,
                batch.ratings,
                routes,
                following.inputs,
                dense_lr=self._learning.dense_lr,
                table_lr=self._learning.table_lr,
                dropout_key=key,
                signal=signal,
            )
        except tf.errors.InvalidArgumentError as error:
            where = f"step {step} (timestamp {batch.share.timestamp}, batch {batch.share.number})"
            # Which check failed: an Assert's message is the only way out of a compiled graph.
            if IDS_OUTSIDE in error.message:
                found = self._outside(batch.inputs) or ELSEWHERE
                raise TrainingError(f"{where}: {IDS_OUTSIDE}; {found}") from error
            if NOT_FINITE in error.message:
                found = self._not_finite(batch, routes, key)
                raise TrainingError(f"{where}: {NOT_FINITE}, {found}; {LOWER_LR}") from error
            raise

    def _outside(self, inputs: ModelInputs) -> str:
        """Names the first id outside its table in this rank's batch; empty if there is none."""
        items, _, users = self.step.embedding.table.vocab_sizes
        for name, ids, rows in (("item", inputs.items, items), ("user", inputs.users, users)):
            bad = np.flatnonzero((ids < 0) | (ids >= rows))
            if len(bad):
                return (
                    f"rank {self._collective.rank}: expected {name}s in [0, {rows}), found "
                    f"{ids[bad[0]]}; give the data that the tables were made for"
                )
        return ""

    def _not_finite(self, batch: Prepared, routes: Routes, key: int) -> str:
        """Names the ranks whose requests are at fault; the weights are those before the step."""
        lookup = self.step.embedding.lookup(routes)
        local = self.step.gradients(
            batch.inputs, lookup, tf.constant(batch.ratings), tf.constant(key, tf.int64)
        )
        values = [local.loss, *local.vectors, *local.weights]
        finite = all(np.isfinite(tf.reduce_sum(tf.cast(value, tf.float32))) for value in values)
        texts = self._collective.gather_text("" if finite else "its requests")
        found = [f"rank {rank}" for rank, text in enumerate(texts) if text]
        return f"from the requests of {' and '.join(found)}" if found else "from no rank alone"
