"""The loop around the training step: when to report, save, evaluate and stop, and why.

Knows neither files nor how a step computes what it does.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from dlrm.config import Config
from dlrm.data import Batch
from dlrm.distributed.collective import Collective
from dlrm.distributed.watchdog import NullWatchdog, Watchdog
from dlrm.embedding import Embedding
from dlrm.train.evaluation import Evaluation, Evaluator
from dlrm.train.step import BAD_IDS, NOT_FINITE, Routes, TrainingStep

ELSEWHERE = "another rank names the sample"
ASK_INTERVAL = 16  # evaluation batches between looks whether a rank was asked to stop
LOWER_LR = "lower --lr, lengthen --warmup_steps, or use --amp_dtype=bfloat16 if this is float16"


class Reports(Protocol):
    """What the loop tells of its progress."""

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """After `step` steps the last loss was `loss`."""

    def evaluation(self, result: Evaluation) -> None:
        """An evaluation ended."""


class TrainingError(ValueError):
    """A step that must not be taken; weights and tables are those of the step before."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        reason: why, in words.
        step: steps done since the training began anew.
        evaluation_seconds: spent on evaluations.
        interrupted: it was asked to stop before its end.
    """

    reason: str
    step: int
    evaluation_seconds: float
    interrupted: bool = False


class Trainer:
    """Trains one model and its tables, together with the trainers of the other ranks.

    Args:
        config: settings of the run.
        model: the dense part, the same on every rank.
        embedding: this rank's share of the tables.
        collective: the ranks.
        num_dense: dense features of a sample.
        lanes: the local batch is computed in so many parts side by side.

    Attributes:
        embedding: as given.
        dense: the dense weights by name, the same on every rank.
    """

    def __init__(
        self,
        config: Config,
        model: keras.Model,
        embedding: Embedding,
        collective: Collective,
        *,
        num_dense: int,
        lanes: int = 1,
    ) -> None:
        self._config = config
        self._schedule = config.optimizer.schedule(config.data.global_batch_size)
        self._collective = collective
        self._evaluator = Evaluator(config.evaluation.auc_thresholds, collective)
        self._step = TrainingStep(
            config,
            model,
            embedding,
            collective,
            self._evaluator,
            num_dense=num_dense,
            lanes=lanes,
        )
        self.embedding = embedding
        self.dense = self._step.dense

    def train(
        self,
        epochs: Sequence[Iterable[Batch]],
        test: Iterable[Batch],
        reports: Reports,
        *,
        first_step: int = 0,
        save: Callable[[int], None] = lambda step: None,
        watchdog: Watchdog | NullWatchdog = NullWatchdog(),  # noqa: B008 - it holds nothing
    ) -> Outcome:
        """Runs until the AUC target, `early_stop`, the end of the data, or a signal.

        Saves before it evaluates: a run that goes on from that state evaluates first.

        Args:
            epochs: the training batches of each epoch, the same number on every rank.
            test: the evaluation batches; iterated anew for each evaluation.
            reports: hears of losses and evaluations.
            first_step: steps done before.
            save: called with the steps done every `checkpoint_interval` steps and at the end.
            watchdog: a signal on any rank ends the training of all after the same step.

        Raises:
            TrainingError: on every rank, before the update, for a loss or gradient that is not
                finite or, with bad_ids `error`, an id outside its table.
        """
        config = self._config
        batches = with_next(itertools.chain.from_iterable(epochs))
        step, evaluation_seconds = first_step, 0.0
        asked, routes = tf.constant(0.0), None

        def outcome(reason: str, interrupted: bool = False) -> Outcome:
            save(step)
            return Outcome(reason, step, evaluation_seconds, interrupted)

        def evaluated() -> Evaluation | None:
            nonlocal evaluation_seconds
            result = self.evaluate(test, step, watchdog)
            if result is not None:
                evaluation_seconds += result.seconds
                reports.evaluation(result)
            return result

        while True:
            if (
                step
                and step % config.evaluation.eval_interval == 0
                and not config.evaluation.eval_in_last
            ):
                result = evaluated()
                if result is None:
                    return outcome("a signal", interrupted=True)
                if result.auc > config.evaluation.auc_target:
                    return outcome(f"AUC > {config.evaluation.auc_target}")
            batch, following = next(batches, (None, None))
            if batch is None or following is None or 0 < config.run.early_stop <= step:
                break
            # Every rank knows of it by the step before, so that none waits for this step's end.
            if float(asked):
                return outcome("a signal", interrupted=True)
            watchdog.report_progress(f"step {step}")
            if routes is None:
                routes = self._step.route(batch.ids)
            learning_rate = self._schedule.learning_rate(step)
            signal = 1.0 if watchdog.signal else 0.0
            loss, asked, routes = self._checked_step(
                step, batch, routes, following, learning_rate, signal
            )
            step += 1
            if step % config.report.log_interval == 0:
                reports.step(step, float(loss), learning_rate)
            if step % config.checkpoint.checkpoint_interval == 0:
                save(step)
        save(step)
        if config.evaluation.eval_in_last and evaluated() is None:
            return outcome("a signal", interrupted=True)
        if 0 < config.run.early_stop <= step:
            return outcome(f"{step} steps")
        return outcome(f"{config.run.epochs} epoch{'s' if config.run.epochs > 1 else ''}")

    def evaluate(
        self,
        test: Iterable[Batch],
        step: int,
        watchdog: Watchdog | NullWatchdog = NullWatchdog(),  # noqa: B008
    ) -> Evaluation | None:
        """Scores every test sample once; None if a signal ended it before.

        Raises:
            TrainingError: on every rank, for a score that is not finite or, with bad_ids `error`,
                an id outside its table.
        """
        start = time.perf_counter()
        self._evaluator.reset()
        bad, where = 0, ""
        for number, batch in enumerate(test):
            watchdog.report_progress(f"evaluation after step {step}, batch {number}")
            if number % ASK_INTERVAL == 0:
                signal = tf.constant(1 if watchdog.signal else 0)
                if int(self._collective.sum(signal, name="evaluation.signal")):
                    return None
            found = int(self._step.score(batch.dense, batch.ids, batch.labels, batch.valid))
            if found and not bad:
                where = self._describe_bad_ids(batch)
            bad += found
        if int(self._collective.sum(tf.constant(bad), name="evaluation.bad")):
            raise TrainingError(f"evaluation after step {step}: {BAD_IDS}; {where or ELSEWHERE}")
        result = self._evaluator.result(step, time.perf_counter() - start)
        if result.samples and not math.isfinite(result.log_loss):
            raise TrainingError(
                f"evaluation after step {step}: the log loss is {result.log_loss}; {LOWER_LR}"
            )
        return result

    def _checked_step(
        self,
        step: int,
        batch: Batch,
        routes: Routes,
        following: Batch,
        learning_rate: float,
        signal: float,
    ) -> tuple[tf.Tensor, tf.Tensor, Routes]:
        """`_step_of`, its failed checks put into words for the user."""
        try:
            return self._step.train(
                batch.dense, batch.labels, routes, following.ids, learning_rate, signal
            )
        except tf.errors.InvalidArgumentError as error:
            place = f"step {step} (global batch of {self._config.data.global_batch_size} samples)"
            if BAD_IDS in error.message:
                where = self._describe_bad_ids(batch)
                raise TrainingError(f"{place}: {BAD_IDS}; {where or ELSEWHERE}") from error
            if NOT_FINITE in error.message:
                where = self._describe_not_finite(batch, routes)
                raise TrainingError(f"{place}: {NOT_FINITE}, {where}; {LOWER_LR}") from error
            raise

    def _describe_bad_ids(self, batch: Batch) -> str:
        """The first id outside its table in this rank's batch; empty if there is none."""
        vocab_sizes = np.asarray(self.embedding.table.vocab_sizes)
        bad = np.argwhere((batch.ids < 0) | (batch.ids >= vocab_sizes))
        if not len(bad):
            return ""
        sample, table = bad[0]
        return (
            f"rank {self._collective.rank}, sample {sample} of its batch: expected an id in "
            f"[0, {vocab_sizes[table]}) for table {table}, found {batch.ids[sample, table]}; "
            "correct vocab_sizes in metadata.json or the data, or set --bad_ids=clip or zero"
        )

    def _describe_not_finite(self, batch: Batch, routes: Routes) -> str:
        """Which ranks' samples did it; the weights are still those that the step began with."""
        vectors = self.embedding.lookup(routes).vectors
        loss, total, _, gradients = self._step.gradients(batch.dense, vectors, batch.labels)
        finite = all(np.isfinite(tf.reduce_sum(value)) for value in [loss, total, *gradients])
        samples = f"samples {batch.first} to {batch.first + len(batch.labels) - 1}"
        texts = self._collective.gather_text("" if finite else samples)
        found = [f"rank {rank} ({text})" for rank, text in enumerate(texts) if text]
        return f"from {' and '.join(found)} of the training data" if found else "from no rank alone"


def with_next(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch]]:
    """Each batch with the one after it; the last one with itself."""
    iterator = iter(batches)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current, current if following is None else following
        current = following
