"""One step of training, and the scoring of one batch: the computation, without the loop around it.

A training step looks up the vectors of its batch, differentiates the dense part with respect to its
own weights and to the vectors, averages the dense gradients over ranks, and updates tables and
weights. The routes of the next batch need none of this, so the same step computes them, and their
exchange overlaps with the arithmetic.

Settings, files and the choice of when to take a step are no concern of this module. Shapes in it:

    B  local batch: samples of one step on this rank
    D  dense features of a sample
    T  embedding tables, looked up in groups of t tables each
    W  values in an embedding row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, Lookup, Route, Traffic
from dlrm.embedding.traffic import all_reduce_bytes
from dlrm.optim.dense_optimizers import DenseOptimizer
from dlrm.train.health import HEALTH_BYTES, Health, checks

Routes = tuple[Route, ...]


class Gradients(NamedTuple):
    """The loss of a local batch, and `loss_scale` times its gradients.

    Attributes:
        loss: float32 [], mean loss of the local batch, not scaled.
        vector_sum: float32 [], sum of all values of `vectors`, to check that they are finite.
        vectors: [B, t, W] for each group of tables.
        weights: One tensor per dense weight, of its shape.
    """

    loss: tf.Tensor
    vector_sum: tf.Tensor
    vectors: list[tf.Tensor]
    weights: list[tf.Tensor]


class TrainingStep:
    """The compiled computation of a model, its tables and its ranks.

    Example:
        step = TrainingStep(model, embedding, DenseSGD(), collective, num_dense=13, local_batch=64)
        step.build()
        routes = step.route(batch.ids)
        health, routes = step.train(batch.dense, batch.labels, routes, following.ids, 0.1)

    Args:
        model: The dense part, the same on every rank: logits from dense features and vectors.
        embedding: This rank's share of the tables.
        optimizer: Updates the dense weights.
        collective: The ranks.
        num_dense: Number of dense features of a sample.
        local_batch: Number of samples of one step on this rank.
        lanes: Number of independent slices of the local batch that are computed in parallel.
        loss_scale: Factor on the loss while gradients are computed; it is divided out again.
        sum_over_ranks: Whether the tables follow the sum over ranks of the gradients of the local
            mean losses, rather than the gradient of the global mean loss.
        compiled: Whether XLA compiles the dense part as one program.

    Attributes:
        embedding: As given.
        dense: Weights and optimizer state of the dense layers by name, which a checkpoint holds;
            empty until built.
    """

    def __init__(
        self,
        model: keras.Model,
        embedding: Embedding,
        optimizer: DenseOptimizer,
        collective: Collective,
        *,
        num_dense: int,
        local_batch: int,
        lanes: int = 1,
        loss_scale: float = 1.0,
        sum_over_ranks: bool = False,
        compiled: bool = False,
    ) -> None:
        self.embedding = embedding
        self.dense: Mapping[str, tf.Variable] = {}
        self._model = model
        self._optimizer = optimizer
        self._collective = collective
        self._num_dense = num_dense
        self._local_batch = local_batch
        self._lanes = lanes
        self._loss_scale = loss_scale
        # A row's owner sums the gradients of all ranks' local means: size times the global mean's.
        self._row_scale = 1.0 if sum_over_ranks else 1.0 / collective.size
        self._compiled = compiled or None  # False would forbid it even inside the model

    def build(self) -> None:
        """Creates the weights, with rank 0's values on every rank, and traces the functions.

        All ranks call it together.
        """
        width, tables = self.embedding.table.width, len(self.embedding.table.vocab_sizes)
        self._model(tf.zeros([1, self._num_dense]), tf.zeros([1, tables, width]))
        weights = self._model.trainable_variables
        self._variables = [as_tf_variable(weight) for weight in weights]
        named = dict(zip(map(plain_name, weights), self._variables))
        assert len(named) == len(weights), "two weights of one name"
        self._collective.broadcast(self._variables)
        self._optimizer.build(named)
        self.dense = {**named, **self._optimizer.state}

        dense = tf.TensorSpec([self._local_batch, self._num_dense], tf.float32)
        labels = tf.TensorSpec([self._local_batch], tf.float32)
        ids = tf.TensorSpec([self._local_batch, tables], tf.int32)
        scalar = tf.TensorSpec([], tf.float32)
        self._compiled_gradients = tf.function(self._gradients, jit_compile=self._compiled)
        self._compiled_model = tf.function(self._model.call, jit_compile=self._compiled)
        self._compiled_route = tf.function(self.embedding.route, input_signature=[ids])
        routes = tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype),
            self._compiled_route.get_concrete_function().structured_outputs,
        )
        self._compiled_train = tf.function(
            self._train, input_signature=[dense, labels, routes, ids, scalar, scalar]
        )
        self._compiled_score = tf.function(self._score, input_signature=[dense, ids])

    def route(self, ids: tf.Tensor) -> Routes:
        """Finds where the rows of a batch lie; needs no weights. All ranks call it together.

        Args:
            ids: int32 [B, T].
        """
        routes: Routes = self._compiled_route(ids)
        return routes

    def train(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor,
        learning_rate: float,
        signal: float = 0.0,
    ) -> tuple[Health, Routes]:
        """Takes one step on a routed batch. All ranks call it together.

        Args:
            dense: float32 [B, D].
            labels: float32 [B], 0 or 1.
            routes: Routes of this batch's ids.
            next_ids: int32 [B, T], ids of the batch after it.
            learning_rate: The learning rate of this step.
            signal: Above 0 if this rank was asked to stop.

        Returns:
            Means over ranks, of the losses before the update; the routes of the next batch.

        Raises:
            tf.errors.InvalidArgumentError: On every rank, before anything is updated; the message
                holds `IDS_OUTSIDE` or `NOT_FINITE`.
        """
        health, next_routes = self._compiled_train(
            dense, labels, routes, next_ids, learning_rate, signal
        )
        return health, next_routes

    def traffic(self, routes: Routes) -> Traffic:
        """Counts the bytes that this rank sends to the others in the step of these routes."""
        payload = HEALTH_BYTES + sum(v.dtype.size * v.shape.num_elements() for v in self._variables)
        dense = all_reduce_bytes(payload, self._collective.size)
        return self.embedding.traffic(routes)._replace(dense=dense)

    def score(self, dense: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the logits of a batch. All ranks call it together.

        Args:
            dense: float32 [B, D].
            ids: int32 [B, T].

        Returns:
            float32 [B], logits; int32 [], number of ids outside their table.
        """
        logits, bad_ids = self._compiled_score(dense, ids)
        return logits, bad_ids

    def gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> Gradients:
        """Differentiates this rank's mean loss; no other rank takes part.

        Args:
            dense: float32 [B, D].
            vectors: [B, t, W] for each group of tables.
            labels: float32 [B].
        """
        gradients: Gradients = self._compiled_gradients(dense, vectors, labels)
        return gradients

    def _train(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor,
        learning_rate: tf.Tensor,
        signal: tf.Tensor,
    ) -> tuple[Health, Routes]:
        """The graph of `train`."""
        next_routes = self.embedding.route(next_ids)
        lookup = self.embedding.lookup(routes)  # vectors: [B, t, W] for each group
        local = self.gradients(dense, lookup.vectors, labels)
        bad_ids = tf.cast(bad_count(routes), tf.float32)  # []
        health = Health(local.loss, bad_ids, local.vector_sum, signal).pack()  # [4]
        # The figures that all ranks need are averaged with the gradients, in one exchange.
        health, *gradients = self._collective.mean([health, *local.weights], name="dense")
        mean = Health.unpack(health)
        # Every update is computed from the learning rate, so none comes before the checks.
        with tf.control_dependencies(checks(mean, gradients)):
            learning_rate = tf.identity(learning_rate)
        self._update(lookup, local.vectors, gradients, learning_rate)
        return mean, next_routes

    def _gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> Gradients:
        """The graph of `gradients`: the lanes in parallel, then their sums."""
        lanes = [
            self._lane_gradients(*lane) for lane in in_lanes([dense, vectors, labels], self._lanes)
        ]
        losses, sums, vector_gradients, weight_gradients = zip(*lanes)
        return Gradients(
            tf.add_n(losses) / labels.shape[0],
            tf.add_n(sums),
            [tf.concat(group, 0) for group in zip(*vector_gradients)],
            [tf.add_n(weight) for weight in zip(*weight_gradients)],
        )

    def _lane_gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> Gradients:
        """One lane's share; its `loss` is the sum over the lane's samples, not their mean.

        Args:
            dense: float32 [b, D], where b = B / lanes.
            vectors: [b, t, W] for each group of tables.
            labels: float32 [b].
        """
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            logits = self._model(dense, vectors)  # [b]
            loss = tf.reduce_sum(
                tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            )
            scaled = loss * (self._loss_scale / (self._lanes * labels.shape[0]))
        gradients = tape.gradient(scaled, [*vectors, *self._variables])
        of_vectors, of_weights = gradients[: len(vectors)], gradients[len(vectors) :]
        # In float32: a sum of float16 values may overflow where none of them has.
        vector_sum = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in of_vectors])
        return Gradients(loss, vector_sum, of_vectors, of_weights)

    def _update(
        self,
        lookup: Lookup,
        vector_gradients: Sequence[tf.Tensor],
        weight_gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
    ) -> None:
        """Updates rows and weights; the gradients still hold the loss scale."""
        scale = 1.0 / self._loss_scale
        self.embedding.update(lookup, vector_gradients, learning_rate, scale * self._row_scale)
        self._optimizer.apply(weight_gradients, learning_rate, scale)

    def _score(self, dense: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The graph of `score`."""
        routes = self.embedding.route(ids)
        vectors = self.embedding.lookup(routes).vectors  # [B, t, W] for each group
        lanes = in_lanes([dense, vectors], self._lanes)
        return tf.concat([self._compiled_model(*lane) for lane in lanes], 0), bad_count(routes)


def in_lanes(tensors: Sequence[Any], lanes: int) -> list[Any]:
    """Cuts each tensor of a nest into `lanes` slices along its first axis; one nest per lane.

    The lanes are independent in the graph, so each keeps a core busy with whole operations. Where
    several cores share one operation, those that finish their part first wait for the others.
    """
    slices = [tf.split(tensor, lanes) for tensor in tf.nest.flatten(tensors)]
    return [tf.nest.pack_sequence_as(tensors, lane) for lane in zip(*slices)]


def bad_count(routes: Routes) -> tf.Tensor:
    """Counts the ids outside their table in this rank's batch, int32 []."""
    return tf.add_n([route.bad for route in routes])


def plain_name(variable: keras.Variable) -> str:
    """Returns a weight's own name, such as `top_kernel_0`, in Keras 2 and 3 alike."""
    return variable.name.rpartition("/")[2].partition(":")[0]


def as_tf_variable(variable: keras.Variable) -> tf.Variable:
    """Returns the TensorFlow variable behind Keras 3's own, or Keras 2's as it is."""
    return variable if isinstance(variable, tf.Variable) else variable.value
