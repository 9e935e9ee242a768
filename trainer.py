"""The training step and the loop around it.

A step: look up the vectors of this batch, differentiate the dense part with respect to its own
weights and to the vectors, average the dense gradients over ranks, update tables and weights. The
routes of the next batch need none of this, so they are made in the same step and overlap with it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from collective import Collective
from config import Config
from dataset import Batch
from embedding import AllToAllEmbedding, Lookup, Route
from evaluation import Evaluation, Evaluator
from model import DLRM

Routes = tuple[Route, ...]

BAD_IDS, NOT_FINITE = "ids outside their table", "a loss or gradient that is not finite"
ELSEWHERE = "another rank names the sample"
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
    """How a run ended: why, in words; steps done; seconds spent evaluating."""

    reason: str
    steps: int
    evaluation_seconds: float


class Trainer:
    """Trains one model and its tables, together with the trainers of the other ranks.

    Args:
        config: settings of the run.
        model: the dense part, the same on every rank.
        embedding: this rank's share of the tables.
        collective: the ranks.
        num_dense: dense features of a sample.
        lanes: the local batch is computed in so many parts side by side.
    """

    def __init__(
        self,
        config: Config,
        model: DLRM,
        embedding: AllToAllEmbedding,
        collective: Collective,
        *,
        num_dense: int,
        lanes: int = 1,
    ) -> None:
        self._config = config
        self._schedule = config.schedule
        self._model = model
        self.embedding = embedding
        self._collective = collective
        self._lanes = lanes
        self._evaluator = Evaluator(config.auc_thresholds, collective)

        batch = config.global_batch_size // collective.size
        tables = embedding.table.vocab_sizes
        dense = tf.TensorSpec([batch, num_dense], tf.float32)
        ids = tf.TensorSpec([batch, len(tables)], tf.int32)
        labels = tf.TensorSpec([batch], tf.float32)
        count = tf.TensorSpec([], tf.int32)

        model(tf.zeros([1, num_dense]), tf.zeros([1, len(tables), embedding.table.width]))
        self.variables = [as_tf_variable(variable) for variable in model.trainable_variables]
        collective.broadcast(self.variables)

        self._gradients = tf.function(self._gradients_of, jit_compile=config.xla or None)
        self._forward = tf.function(model.call, jit_compile=config.xla or None)
        self._route = tf.function(embedding.route, input_signature=[ids])
        routes = tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype),
            self._route.get_concrete_function().structured_outputs,
        )
        self._step = tf.function(
            self._step_of,
            input_signature=[dense, labels, routes, ids, tf.TensorSpec([], tf.float32)],
        )
        self._score = tf.function(self._score_of, input_signature=[dense, ids, labels, count])

    def train(
        self,
        epochs: Sequence[Iterable[Batch]],
        test: Iterable[Batch],
        reports: Reports,
        first_step: int = 0,
    ) -> Outcome:
        """Runs until the AUC target, `early_stop` or the end of the data.

        Args:
            epochs: the training batches of each epoch, the same number on every rank.
            test: the evaluation batches; iterated anew for each evaluation.
            reports: hears of losses and evaluations.
            first_step: steps done before.

        Raises:
            TrainingError: on every rank, before the update, for a loss or gradient that is not
                finite or, with bad_ids `error`, an id outside its table.
        """
        config = self._config
        step, reason = first_step, f"{len(epochs)} epoch{'s' if len(epochs) > 1 else ''}"
        evaluation_seconds = 0.0
        routes = None
        for batch, following in with_next(itertools.chain.from_iterable(epochs)):
            if routes is None:
                routes = self._route(batch.ids)
            learning_rate = self._schedule.learning_rate(step)
            loss, routes = self._checked_step(step, batch, routes, following, learning_rate)
            step += 1
            if step % config.log_interval == 0:
                reports.step(step, float(loss), learning_rate)
            if step % config.eval_interval == 0 and not config.eval_in_last:
                result = self.evaluate(test, step)
                evaluation_seconds += result.seconds
                reports.evaluation(result)
                if result.auc > config.auc_target:
                    reason = f"AUC > {config.auc_target}"
                    break
            if step == config.early_stop:
                reason = f"{step} steps"
                break
        if config.eval_in_last:
            result = self.evaluate(test, step)
            evaluation_seconds += result.seconds
            reports.evaluation(result)
        return Outcome(reason, step - first_step, evaluation_seconds)

    def evaluate(self, test: Iterable[Batch], step: int) -> Evaluation:
        """Scores every test sample once.

        Raises:
            TrainingError: on every rank, for a score that is not finite or, with bad_ids `error`,
                an id outside its table.
        """
        start = time.perf_counter()
        self._evaluator.reset()
        bad, where = 0, ""
        for batch in test:
            found = int(self._score(batch.dense, batch.ids, batch.labels, batch.valid))
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
        self, step: int, batch: Batch, routes: Routes, following: Batch, learning_rate: float
    ) -> tuple[tf.Tensor, Routes]:
        """`_step_of`, its failed checks put into words for the user."""
        try:
            return self._step(batch.dense, batch.labels, routes, following.ids, learning_rate)
        except tf.errors.InvalidArgumentError as error:
            place = f"step {step} (global batch of {self._config.global_batch_size} samples)"
            if BAD_IDS in error.message:
                where = self._describe_bad_ids(batch)
                raise TrainingError(f"{place}: {BAD_IDS}; {where or ELSEWHERE}") from error
            if NOT_FINITE in error.message:
                raise TrainingError(f"{place}: {NOT_FINITE}; {LOWER_LR}") from error
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

    def _step_of(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> tuple[tf.Tensor, Routes]:
        """One step on a routed batch; gives the global mean loss and the next batch's routes."""
        next_routes = self.embedding.route(next_ids)
        lookup = self.embedding.lookup(routes)
        loss, vector_gradients, gradients = self._gradients(dense, lookup.vectors, labels)
        # What every rank must know of the others rides with the gradients: one exchange.
        health = tf.stack([loss, tf.cast(bad_count(routes), tf.float32)])
        health, *gradients = self._collective.mean([health, *gradients], name="dense")
        finite = tf.reduce_all([tf.math.is_finite(tf.reduce_sum(g)) for g in [health, *gradients]])
        checks = [
            tf.debugging.Assert(health[1] == 0, [BAD_IDS]),
            tf.debugging.Assert(finite, [NOT_FINITE]),
        ]
        with tf.control_dependencies(checks):
            learning_rate = tf.identity(learning_rate) / self._config.loss_scale
        self._update(lookup, vector_gradients, gradients, learning_rate)
        return health[0], next_routes

    def _gradients_of(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """The local mean loss, and `loss_scale` times its gradient: vectors, dense weights."""
        lanes = [
            self._lane_gradients(*lane) for lane in in_lanes([dense, vectors, labels], self._lanes)
        ]
        losses, vector_gradients, gradients = zip(*lanes)
        return (
            tf.add_n(losses) / labels.shape[0],
            [tf.concat(group, 0) for group in zip(*vector_gradients)],
            [tf.add_n(variable) for variable in zip(*gradients)],
        )

    def _lane_gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """A lane's sum of losses, and its share of the local mean loss's scaled gradient."""
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            logits = self._model(dense, vectors)
            loss = tf.reduce_sum(
                tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            )
            scaled = loss * (self._config.loss_scale / (self._lanes * labels.shape[0]))
        gradients = tape.gradient(scaled, [*vectors, *self.variables])
        return loss, gradients[: len(vectors)], gradients[len(vectors) :]

    def _update(
        self,
        lookup: Lookup,
        vector_gradients: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
    ) -> None:
        # Owners sum over ranks the gradients of each rank's local mean: size times the global mean.
        mean = self._config.embedding_grad == "mean"
        share = 1.0 / self._collective.size if mean else 1.0
        self.embedding.update(lookup, vector_gradients, learning_rate * share)
        for variable, gradient in zip(self.variables, gradients):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=learning_rate, delta=gradient
            )

    def _score_of(
        self, dense: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor
    ) -> tf.Tensor:
        """Adds a batch to the evaluation; gives the number of ids outside their table."""
        routes = self.embedding.route(ids)
        vectors = self.embedding.lookup(routes).vectors
        lanes = in_lanes([dense, vectors], self._lanes)
        self._evaluator.add(tf.concat([self._forward(*lane) for lane in lanes], 0), labels, valid)
        return bad_count(routes)


def in_lanes(tensors: Sequence[Any], lanes: int) -> list[Any]:
    """Cuts each tensor of a nest into `lanes` along its first axis: one nest a lane.

    The lanes are independent in the graph, so each keeps a core busy with whole operations; a core
    that waits for the other half of one operation does nothing.
    """
    pieces = [tf.split(tensor, lanes) for tensor in tf.nest.flatten(tensors)]
    return [tf.nest.pack_sequence_as(tensors, lane) for lane in zip(*pieces)]


def bad_count(routes: Routes) -> tf.Tensor:
    """int32 []: ids outside their table in this rank's batch."""
    return tf.add_n([route.bad for route in routes])


def with_next(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch]]:
    """Each batch with the one after it; the last one with itself."""
    iterator = iter(batches)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current, current if following is None else following
        current = following


def as_tf_variable(variable: keras.Variable) -> tf.Variable:
    """The TensorFlow variable behind Keras 3's own, or Keras 2's as it is."""
    return variable if isinstance(variable, tf.Variable) else variable.value
