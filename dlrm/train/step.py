"""One step of training and of evaluation on one batch: the computation, without the loop around it.

A training step looks up the vectors of its batch, differentiates the dense part with respect to its
own weights and to the vectors, averages the dense gradients over ranks, and updates tables and
weights. The routes of the next batch need none of this, so they are made in the same step and
overlap with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dlrm.config import Config
from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, Lookup, Route
from dlrm.train.evaluation import Evaluator
from dlrm.train.optimizers import dense_optimizer

Routes = tuple[Route, ...]

BAD_IDS, NOT_FINITE = "ids outside their table", "a loss or gradient that is not finite"


class TrainingStep:
    """The compiled functions of a model, its tables and its ranks.

    Args:
        config: settings of the run.
        model: the dense part, the same on every rank.
        embedding: this rank's share of the tables.
        collective: the ranks.
        evaluator: counts what `score` scores.
        num_dense: dense features of a sample.
        lanes: the local batch is computed in so many parts side by side.

    Attributes:
        dense: Weights and optimizer state of the dense layers by name, which a checkpoint holds.
        route: ids int32 [local batch, tables] -> their routes.
        train: see `_step_of`.
        score: see `_score_of`.
        gradients: see `_gradients_of`.
    """

    def __init__(
        self,
        config: Config,
        model: keras.Model,
        embedding: Embedding,
        collective: Collective,
        evaluator: Evaluator,
        *,
        num_dense: int,
        lanes: int,
    ) -> None:
        self._config = config
        self._model = model
        self._embedding = embedding
        self._collective = collective
        self._evaluator = evaluator
        self._lanes = lanes

        batch = config.data.global_batch_size // collective.size
        tables = embedding.table.vocab_sizes
        dense = tf.TensorSpec([batch, num_dense], tf.float32)
        ids = tf.TensorSpec([batch, len(tables)], tf.int32)
        labels = tf.TensorSpec([batch], tf.float32)
        count, scalar = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)

        model(tf.zeros([1, num_dense]), tf.zeros([1, len(tables), embedding.table.width]))
        weights = model.trainable_variables
        self._variables = [as_tf_variable(weight) for weight in weights]
        self.dense = dict(zip(map(plain_name, weights), self._variables))
        assert len(self.dense) == len(weights), "two weights of one name"
        collective.broadcast(self._variables)
        self._optimizer = dense_optimizer(config.optimizer)
        self._optimizer.build(self.dense)
        self.dense = {**self.dense, **self._optimizer.state}

        # XLA has no fused interaction: the model then compiles its MLPs around it by itself.
        compiled = config.model.whole_graph_xla or None
        self.gradients = tf.function(self._gradients_of, jit_compile=compiled)
        self._forward = tf.function(model.call, jit_compile=compiled)
        self.route = tf.function(embedding.route, input_signature=[ids])
        routes = tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype),
            self.route.get_concrete_function().structured_outputs,
        )
        self.train = tf.function(
            self._step_of, input_signature=[dense, labels, routes, ids, scalar, scalar]
        )
        self.score = tf.function(self._score_of, input_signature=[dense, ids, labels, count])

    def _step_of(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor,
        learning_rate: tf.Tensor,
        signal: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, Routes]:
        """One step on a routed batch.

        Args:
            dense: float32 [local batch, num_dense].
            labels: float32 [local batch].
            routes: of this batch's ids.
            next_ids: int32 [local batch, tables], of the batch after it.
            learning_rate: float32 [].
            signal: float32 [], above 0 if this rank was asked to stop.

        Returns:
            The global mean loss, the mean of `signal` over ranks, the next batch's routes.
        """
        next_routes = self._embedding.route(next_ids)
        lookup = self._embedding.lookup(routes)
        loss, total, vector_gradients, gradients = self.gradients(dense, lookup.vectors, labels)
        # What every rank must know of the others rides with the gradients: one exchange.
        health = tf.stack([loss, tf.cast(bad_count(routes), tf.float32), total, signal])
        health, *gradients = self._collective.mean([health, *gradients], name="dense")
        finite = tf.reduce_all([tf.math.is_finite(tf.reduce_sum(g)) for g in [health, *gradients]])
        checks = [
            tf.debugging.Assert(health[1] == 0, [BAD_IDS]),
            tf.debugging.Assert(finite, [NOT_FINITE]),
        ]
        with tf.control_dependencies(checks):
            learning_rate = tf.identity(learning_rate)
        self._update(lookup, vector_gradients, gradients, learning_rate)
        return health[0], health[3], next_routes

    def _gradients_of(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """The local mean loss and `loss_scale` times its gradient.

        Returns:
            The loss; the sum of all the vectors' gradients, there to be checked, as a value that
            is not finite makes it so too; the vectors' gradients; the dense weights'.
        """
        lanes = [
            self._lane_gradients(*lane) for lane in in_lanes([dense, vectors, labels], self._lanes)
        ]
        losses, totals, vector_gradients, gradients = zip(*lanes)
        return (
            tf.add_n(losses) / labels.shape[0],
            tf.add_n(totals),
            [tf.concat(group, 0) for group in zip(*vector_gradients)],
            [tf.add_n(variable) for variable in zip(*gradients)],
        )

    def _lane_gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """A lane's sum of losses, and its share of `_gradients_of`'s results."""
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            logits = self._model(dense, vectors)
            loss = tf.reduce_sum(
                tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            )
            scaled = loss * (self._config.model.loss_scale / (self._lanes * labels.shape[0]))
        gradients = tape.gradient(scaled, [*vectors, *self._variables])
        of_vectors = gradients[: len(vectors)]
        # In float32: a sum of float16 values may overflow where none of them has.
        total = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in of_vectors])
        return loss, total, of_vectors, gradients[len(vectors) :]

    def _update(
        self,
        lookup: Lookup,
        vector_gradients: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
    ) -> None:
        scale = 1.0 / self._config.model.loss_scale
        # Owners sum over ranks the gradients of each rank's local mean: size times the global mean.
        mean = self._config.optimizer.embedding_grad == "mean"
        row_scale = scale / self._collective.size if mean else scale
        self._embedding.update(lookup, vector_gradients, learning_rate, row_scale)
        self._optimizer.apply(gradients, learning_rate, scale)

    def _score_of(
        self, dense: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor
    ) -> tf.Tensor:
        """Adds a batch to the evaluation; gives the number of ids outside their table."""
        routes = self._embedding.route(ids)
        vectors = self._embedding.lookup(routes).vectors
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


def plain_name(variable: keras.Variable) -> str:
    """A weight's own name, such as `top_kernel_0`, in Keras 2 and 3 alike."""
    return variable.name.rpartition("/")[2].partition(":")[0]


def as_tf_variable(variable: keras.Variable) -> tf.Variable:
    """The TensorFlow variable behind Keras 3's own, or Keras 2's as it is."""
    return variable if isinstance(variable, tf.Variable) else variable.value
