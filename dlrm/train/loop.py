"""The loop around the training step: when to evaluate, stop, train, report and save, and why.

Files, and how a step computes its results, are no concern of this module.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from dlrm.config import EvaluationConfig, RunConfig
from dlrm.data import Batch
from dlrm.data.decode import first_id_outside
from dlrm.distributed.collective import Collective
from dlrm.formats.quantities import plural
from dlrm.metrics import Evaluation
from dlrm.optim.schedule import Schedule
from dlrm.train.callback import Callback
from dlrm.train.evaluation import Evaluator
from dlrm.train.health import IDS_OUTSIDE, NOT_FINITE, Health
from dlrm.train.instruments import CHECKPOINT, DATA, EVALUATION, Instruments, StepInputs
from dlrm.train.step import Routes, TrainingStep

Item = TypeVar("Item")

ELSEWHERE = "another rank names the sample"
SIGNAL_INTERVAL = 16  # evaluation batches between two checks whether a rank was asked to stop
LOWER_LR = "lower --lr, lengthen --warmup_steps, or use --amp_dtype=bfloat16 if this is float16"


class TrainingError(ValueError):
    """A step that must not be taken; weights and tables are those of the step before."""


class StopRequestedError(Exception):
    """A rank was asked to stop by a signal. Raised on every rank after the same step."""


class Outcome(NamedTuple):
    """The end of a training.

    Attributes:
        reason: Why the training ended, in words.
        step: Number of steps done since the training began anew.
        evaluation_seconds: Time spent on evaluations.
        interrupted: Whether a signal stopped it before its end.
    """

    reason: str
    step: int
    evaluation_seconds: float
    interrupted: bool = False


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: Number of steps done since the training began anew.
        evaluation_seconds: Time spent on evaluations.
    """

    step: int
    evaluation_seconds: float = 0.0


class Trainer:
    """Trains and evaluates one model with its tables, together with the trainers of other ranks.

    Args:
        step: The step, built.
        evaluator: Collects what the step scores.
        collective: The ranks.
        schedule: The learning rate of each step.
        run: How long to train.
        evaluation: When to evaluate, and which AUC ends the training.
        log_interval: Number of steps between two calls of `Callback.step`.
        checkpoint_interval: Number of steps between two calls of `Callback.save`.
        steps_per_epoch: Number of steps in an epoch.
        warmup_steps: Number of first steps after which `Callback.step` is called too.
        instruments: What watches the steps; `Instruments` by default.

    Attributes:
        step: As given.
        instruments: As given.
    """

    def __init__(
        self,
        step: TrainingStep,
        evaluator: Evaluator,
        collective: Collective,
        schedule: Schedule,
        run: RunConfig,
        evaluation: EvaluationConfig,
        *,
        log_interval: int = 1,
        checkpoint_interval: int = 10000,
        steps_per_epoch: int = 1,
        warmup_steps: int = 0,
        instruments: Instruments | None = None,
    ) -> None:
        self.step = step
        self.instruments = instruments or Instruments()
        self._evaluator = evaluator
        self._collective = collective
        self._schedule = schedule
        self._evaluation = evaluation
        self._run = run
        self._log_interval = log_interval
        self._checkpoint_interval = checkpoint_interval
        self._steps_per_epoch = steps_per_epoch
        self._warmup_steps = warmup_steps

    def train(
        self,
        epochs: Sequence[Iterable[Batch]],
        test: Iterable[Batch],
        callback: Callback,
        *,
        first_step: int = 0,
    ) -> Outcome:
        """Trains until the AUC target, `early_stop`, the end of the data, or a signal.

        Args:
            epochs: The training batches of each epoch, the same number on every rank.
            test: The evaluation batches; iterated anew for each evaluation.
            callback: Receives losses, evaluations and states to save.
            first_step: Number of steps done by the run that this one continues.

        Raises:
            TrainingError: On every rank, before the update, for a loss or gradient that is not
                finite or, with bad_ids `error`, an id outside its table.
        """
        progress = Progress(first_step)
        try:
            reason = self._train(progress, epochs, test, callback)
            interrupted = False
        except StopRequestedError:
            reason, interrupted = "a signal", True
        finally:
            self.instruments.stop()
        self._save(progress.step, callback)
        return Outcome(reason, progress.step, progress.evaluation_seconds, interrupted)

    def evaluate(self, test: Iterable[Batch], step: int, callback: Callback) -> Evaluation:
        """Scores every test sample once.

        Args:
            test: The evaluation batches.
            step: Number of steps done before.
            callback: Receives the progress and the result.

        Raises:
            StopRequestedError: On every rank, if one was asked to stop.
            TrainingError: On every rank, for a score that is not finite or, with bad_ids `error`,
                an id outside its table.
        """
        callback.evaluation_start(step)
        self.step.embedding.begin_step(step + 1)  # who has a row by then
        start = time.perf_counter()
        self._evaluator.reset()
        bad = tf.constant(0)  # stays where it is computed: nobody waits for a batch's share
        for number, batch in enumerate(test):
            callback.progress(f"evaluation after step {step}, batch {number}")
            if number % SIGNAL_INTERVAL == 0:
                signal = tf.constant(int(callback.stop_requested()))
                if int(self._collective.sum(signal, name="evaluation.signal")):
                    raise StopRequestedError
            logits, bad_ids = self.step.score(batch.dense, batch.ids)
            self._evaluator.add(logits, batch.labels, batch.valid)
            bad += bad_ids
        if int(self._collective.sum(bad, name="evaluation.bad")):
            where = self._first_bad_ids(test, callback) if int(bad) else ELSEWHERE
            raise TrainingError(f"evaluation after step {step}: {IDS_OUTSIDE}; {where}")
        result = self._evaluator.result(step, time.perf_counter() - start)
        if result.samples and not math.isfinite(result.log_loss):
            raise TrainingError(
                f"evaluation after step {step}: the log loss is {result.log_loss}; {LOWER_LR}"
            )
        callback.evaluation(result)
        return result

    def _train(
        self,
        progress: Progress,
        epochs: Sequence[Iterable[Batch]],
        test: Iterable[Batch],
        callback: Callback,
    ) -> str:
        """The loop itself. Returns why it ended; keeps `progress` up to date for its caller."""
        batches = with_next(itertools.chain.from_iterable(epochs))
        warmup_end = progress.step + self._warmup_steps
        routes: Routes | None = None
        signal: tf.Tensor | float = 0.0
        while True:
            # Evaluate first: a run that resumes from a checkpoint makes the evaluation due there.
            if self._evaluation_is_due(progress.step):
                result = self._evaluate(progress, test, callback)
                if result.auc > self._evaluation.auc_target:
                    return f"AUC > {self._evaluation.auc_target}"

            # The end.
            if 0 < self._run.early_stop <= progress.step:
                reason = f"{progress.step} steps"
                break
            with self.instruments.phase(DATA):
                batch, next_batch = next(batches, (None, None))
            if batch is None or next_batch is None:
                reason = plural(self._run.epochs, "epoch")
                break
            # Every rank knows of a signal by the step before, so none waits for this step's end.
            if float(signal):
                raise StopRequestedError

            # One step.
            callback.progress(f"step {progress.step}")
            if routes is None:
                self.step.embedding.begin_step(progress.step + 1)
                routes = self.step.route(batch.ids)
            # The step routes the next batch's ids; after the last one these are its own again.
            self.step.embedding.begin_step(progress.step + 2 - (next_batch is batch))
            learning_rate = self._schedule.learning_rate(progress.step)
            taken = routes
            asked = float(callback.stop_requested())
            health, routes = self._checked_step(
                progress.step, batch, routes, next_batch, learning_rate, asked
            )
            signal = health.signal
            progress.step += 1

            # Report and save.
            if progress.step % self._log_interval == 0 or progress.step == warmup_end:
                callback.exchanged(self.step.traffic(taken).total)
                callback.step(progress.step, float(health.loss), learning_rate)
            if progress.step % self._checkpoint_interval == 0:
                self._save(progress.step, callback)
        if self._evaluation.eval_in_last:
            # Before the evaluation, which a resumed run then repeats.
            self._save(progress.step, callback)
            self._evaluate(progress, test, callback)
        return reason

    def _evaluation_is_due(self, step: int) -> bool:
        options = self._evaluation
        if options.eval_in_last or step / self._steps_per_epoch < options.test_after:
            return False
        return step > 0 and step % options.eval_interval == 0

    def _evaluate(
        self, progress: Progress, test: Iterable[Batch], callback: Callback
    ) -> Evaluation:
        """Evaluates and counts the time that this takes."""
        with self.instruments.phase(EVALUATION):
            result = self.evaluate(test, progress.step, callback)
        progress.evaluation_seconds += result.seconds
        return result

    def _save(self, step: int, callback: Callback) -> None:
        with self.instruments.phase(CHECKPOINT):
            callback.save(step)

    def _checked_step(
        self,
        step: int,
        batch: Batch,
        routes: Routes,
        next_batch: Batch,
        learning_rate: float,
        signal: float,
    ) -> tuple[Health, Routes]:
        """Takes one step; turns a check that failed in it into a message for the user."""
        try:
            inputs = StepInputs(
                batch.dense, batch.labels, routes, next_batch.ids, learning_rate, signal
            )
            return self.instruments.take(step, self.step.train, inputs)
        except tf.errors.InvalidArgumentError as error:
            global_batch = len(batch.labels) * self._collective.size
            where = f"step {step} (global batch of {global_batch} samples)"
            # Which check failed: an Assert's message is the only way out of a compiled graph.
            if IDS_OUTSIDE in error.message:
                sample = self._describe_bad_ids(batch) or ELSEWHERE
                raise TrainingError(f"{where}: {IDS_OUTSIDE}; {sample}") from error
            if NOT_FINITE in error.message:
                samples = self._describe_not_finite(batch, routes)
                raise TrainingError(f"{where}: {NOT_FINITE}, {samples}; {LOWER_LR}") from error
            raise

    def _first_bad_ids(self, test: Iterable[Batch], callback: Callback) -> str:
        """Reads the batches again until `_describe_bad_ids` finds something."""
        for number, batch in enumerate(test):
            callback.progress(f"search for ids outside their table, batch {number}")
            if found := self._describe_bad_ids(batch):
                return found
        return ELSEWHERE

    def _describe_bad_ids(self, batch: Batch) -> str:
        """Names the first id outside its table in this rank's batch; empty if there is none."""
        vocab_sizes = self.step.embedding.table.vocab_sizes
        bad = first_id_outside(batch.ids, vocab_sizes)
        if bad is None:
            return ""
        sample, table, found = bad
        return (
            f"rank {self._collective.rank}, sample {sample} of its batch: expected an id in "
            f"[0, {vocab_sizes[table]}) for table {table}, found {found}; "
            "correct vocab_sizes in metadata.json or the data, or set --bad_ids=clip or another"
        )

    def _describe_not_finite(self, batch: Batch, routes: Routes) -> str:
        """Names the ranks whose samples are at fault; the weights are those before the step."""
        vectors = self.step.embedding.lookup(routes).vectors
        local = self.step.gradients(batch.dense, vectors, batch.labels)
        values = [local.loss, local.vector_sum, *local.weights]
        finite = all(np.isfinite(tf.reduce_sum(value)) for value in values)
        samples = f"samples {batch.first} to {batch.first + len(batch.labels) - 1}"
        texts = self._collective.gather_text("" if finite else samples)
        found = [f"rank {rank} ({text})" for rank, text in enumerate(texts) if text]
        return f"from {' and '.join(found)} of the training data" if found else "from no rank alone"


def with_next(batches: Iterable[Item]) -> Iterator[tuple[Item, Item]]:
    """Yields each batch with the one after it; the last one with itself."""
    iterator = iter(batches)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current, current if following is None else following
        current = following
