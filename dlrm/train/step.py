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
from typing import Callable, NamedTuple

import keras
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, Route, Traffic
from dlrm.embedding.traffic import all_reduce_bytes
from dlrm.formats.bags import Bags
from dlrm.optim.dense_optimizers import DenseOptimizer
from dlrm.train.dense_part import DensePart, Gradients
from dlrm.train.health import HEALTH_BYTES, Health, checks

Routes = tuple[Route, ...]


class Averaged(NamedTuple):
    """What all ranks know of a step before they take it.

    Attributes:
        health: The figures of all ranks.
        gradients: The mean gradient of each dense weight, of its shape; it holds the loss scale.
        clip: Factor on all gradients that keeps their norm within its bound; 1 without a bound.
        shared: The gradients of shared rows, summed over ranks, for each group of tables.
    """

    health: Health
    gradients: list[tf.Tensor]
    clip: float | tf.Tensor
    shared: list[tf.Tensor]


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
        dense_rate: The learning rate of the dense weights, as a multiple of the tables'.
        clip_norm: Most that the norm of all gradients together may be; None for no bound. The
            gradients are those that update: without the loss scale, and summed by row.
        compiled: Whether XLA compiles the dense part as one program.

    Attributes:
        embedding: As given.
        dense: Weights and optimizer state of the dense layers by name, which a checkpoint holds;
            empty until built.
        dense_part: The model in lanes.
        size: Number of ranks.
        clips: Whether the norm of the gradients has a bound.
        row_scale: Factor on the gradients of the vectors, summed over ranks by row, that makes them
            gradients of the loss.
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
        dense_rate: float = 1.0,
        clip_norm: float | None = None,
        compiled: bool = False,
    ) -> None:
        self.embedding = embedding
        self.dense: Mapping[str, tf.Variable] = {}
        # By batch size: evaluation's batches may have other sizes than training's.
        self._compiled_scores: dict[int, Callable[..., tuple[tf.Tensor, tf.Tensor]]] = {}
        self.dense_part = DensePart(model, lanes=lanes, loss_scale=loss_scale, compiled=compiled)
        self.size = collective.size
        self._optimizer = optimizer
        self._collective = collective
        self._num_dense = num_dense
        self._local_batch = local_batch
        self._dense_scale = 1.0 / loss_scale
        self._dense_rate = dense_rate
        self._clip_norm = clip_norm
        self.clips = clip_norm is not None
        # A row's owner sums the gradients of all ranks' local means: size times the global mean's.
        self.row_scale = 1.0 / loss_scale * (1.0 if sum_over_ranks else 1.0 / collective.size)

    def build(self) -> None:
        """Creates the weights, with rank 0's values on every rank, and traces the functions.

        All ranks call it together.
        """
        width, tables = self.embedding.table.width, len(self.embedding.table.vocab_sizes)
        named = self.dense_part.build(self._num_dense, tables, width)
        self._collective.broadcast(self.dense_part.weights)
        self._optimizer.build(named)
        self.dense = {**named, **self._optimizer.state}

        dense, labels, ids = self.batch_specs
        scalar = tf.TensorSpec([], tf.float32)
        self._compiled_route = tf.function(
            self.embedding.route, input_signature=[ids], autograph=False
        )
        routes = tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype),
            self._compiled_route.get_concrete_function().structured_outputs,
        )
        # The concrete function: choosing it anew at each step takes as long as short products do.
        self._compiled_train = tf.function(
            self._train,
            input_signature=[dense, labels, routes, ids, scalar, scalar],
            autograph=False,
        ).get_concrete_function()
        self._compiled_scores.clear()

    @property
    def batch_specs(self) -> tuple[tf.TensorSpec, tf.TensorSpec, tf.TensorSpec | Bags]:
        """Shapes and types of a batch: dense, labels, ids."""
        return (
            tf.TensorSpec([self._local_batch, self._num_dense], tf.float32),
            tf.TensorSpec([self._local_batch], tf.float32),
            self.embedding.ids_spec(self._local_batch),
        )

    def route(self, ids: tf.Tensor | Bags) -> Routes:
        """Finds where the rows of a batch lie; needs no weights. All ranks call it together.

        Args:
            ids: int32 [B, T], or bags of them.
        """
        routes: Routes = self._compiled_route(ids)
        return routes

    def train(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor | Bags,
        learning_rate: float,
        signal: float = 0.0,
    ) -> tuple[Health, Routes]:
        """Takes one step on a routed batch. All ranks call it together.

        Args:
            dense: float32 [B, D].
            labels: float32 [B], 0 or 1.
            routes: Routes of this batch's ids.
            next_ids: int32 [B, T], ids of the batch after it, or bags of them.
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
        payload = HEALTH_BYTES + tf.float32.size * self.clips
        payload += sum(v.dtype.size * v.shape.num_elements() for v in self.dense_part.weights)
        if self.embedding.shares_rows:
            table = self.embedding.table
            payload += tf.float32.size * len(table.vocab_sizes) * table.width
        dense = all_reduce_bytes(payload, self._collective.size)
        return self.embedding.traffic(routes)._replace(dense=dense)

    def score(self, dense: tf.Tensor, ids: tf.Tensor | Bags) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the logits of a batch. All ranks call it together.

        Args:
            dense: float32 [B, D].
            ids: int32 [B, T], or bags of them.

        Returns:
            float32 [B], logits; int32 [], number of ids outside their table.
        """
        batch = len(dense)
        if batch not in self._compiled_scores:
            specs = [tf.TensorSpec(dense.shape, tf.float32), self.embedding.ids_spec(batch)]
            self._compiled_scores[batch] = tf.function(
                self._score, input_signature=specs, autograph=False
            )
        logits, bad_ids = self._compiled_scores[batch](dense, ids)
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
        return self.dense_part.gradients(dense, vectors, labels)

    def average(
        self,
        local: Gradients,
        routes: Routes,
        signal: tf.Tensor,
        row_squares: tf.Tensor | None = None,
        shared: Sequence[tf.Tensor] = (),
    ) -> Averaged:
        """Averages over ranks, in one exchange, the dense gradients and the figures that all need.

        Args:
            local: This rank's loss and gradients.
            routes: The routes of its batch.
            signal: float32 [], above 0 if this rank was asked to stop.
            row_squares: float32 [], this rank's `Embedding.squares`, where the norm has a bound.
            shared: This rank's `Embedding.shared_gradients`.
        """
        bad_ids = tf.cast(bad_count(routes), tf.float32)  # []
        health = Health(local.loss, bad_ids, local.vector_sum, signal).pack()  # [4]
        own = [health] if row_squares is None else [health, row_squares]
        means = self._collective.mean([*own, *shared, *local.weights], name="dense")
        gradients = means[len(own) + len(shared) :]
        of_shared = [mean * self.size for mean in means[len(own) : len(own) + len(shared)]]
        clip: float | tf.Tensor = 1.0
        if row_squares is not None:
            squares = [tf.reduce_sum(tf.square(gradient)) for gradient in of_shared]
            clip = self._clip(gradients, tf.add_n([means[1] * self.size, *squares]))
        return Averaged(Health.unpack(means[0]), gradients, clip, of_shared)

    def _clip(self, gradients: Sequence[tf.Tensor], row_squares: tf.Tensor) -> tf.Tensor:
        """The factor that brings the norm of dense and row gradients to its bound, or 1.

        Args:
            gradients: The dense gradients of all ranks.
            row_squares: float32 [], the squares of the summed gradients of all ranks' rows.
        """
        dense_squares = tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients])
        assert self._clip_norm is not None, "the norm has no bound"
        norm = tf.sqrt(self._dense_scale**2 * dense_squares + self.row_scale**2 * row_squares)
        return self._clip_norm / tf.maximum(norm, self._clip_norm)

    def update_weights(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, clip: float | tf.Tensor
    ) -> None:
        """Updates the dense weights; their gradients still hold the loss scale."""
        if self._dense_rate != 1:
            learning_rate *= self._dense_rate
        self._optimizer.apply(gradients, learning_rate, clip * self._dense_scale)

    def _train(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor | Bags,
        learning_rate: tf.Tensor,
        signal: tf.Tensor,
    ) -> tuple[Health, Routes]:
        """The graph of `train`."""
        # The scopes are the names under which profilers show the operations.
        with tf.name_scope("route"):
            next_routes = self.embedding.route(next_ids)
        with tf.name_scope("lookup"):
            lookup = self.embedding.lookup(routes)  # vectors: [B, t, W] for each group
        # Without an exchange of keys to wait for, routes come first: beside operations that use all
        # cores they would keep one of these from its share, for which the others wait.
        finished = tf.nest.flatten(next_routes) if self.size == 1 else []
        with tf.name_scope("gradients"), tf.control_dependencies(finished):
            vectors = [tf.identity(tensor) for tensor in lookup.vectors]
            local = self.gradients(tf.identity(dense), vectors, labels)
        # The exchange whose outcome may end the step comes last: then no other is under way.
        with tf.name_scope("exchange_gradients"):
            received = self.embedding.exchange_gradients(lookup, local.vectors)
        with tf.name_scope("all_reduce"):
            # Sums by row, which an update by operations of TensorFlow does not compute again.
            squares = self.embedding.squares(lookup, received) if self.clips else None
            own = self.embedding.shared_gradients(lookup, received)
            mean, gradients, clip, shared = self.average(local, routes, signal, squares, own)
        # Every update is computed from the learning rate, so none comes before the checks.
        with tf.control_dependencies(checks(mean, gradients)):
            learning_rate = tf.identity(learning_rate)
        with tf.name_scope("update"):
            row_scale = clip * self.row_scale
            self.embedding.update_rows(lookup, received, learning_rate, row_scale, shared)
            self.update_weights(gradients, learning_rate, clip)
        return mean, next_routes

    def _score(self, dense: tf.Tensor, ids: tf.Tensor | Bags) -> tuple[tf.Tensor, tf.Tensor]:
        """The graph of `score`."""
        vectors, bad_ids = self.embedding.fetch(ids)  # [B, t, W] for each group
        return self.dense_part.logits(dense, vectors), bad_ids


def bad_count(routes: Routes) -> tf.Tensor:
    """Counts the ids outside their table in this rank's batch, int32 []."""
    return tf.add_n([route.bad for route in routes])
