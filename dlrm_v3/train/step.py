"""One step of training, and the scoring of one batch: the computation, without the loop around it.

As the DLRM's step, it looks up vectors, differentiates, averages over ranks, checks, and updates;
and it makes the routes of the next batch meanwhile. What differs: three tables are looked up by
different numbers of ids, and batches have any number of tokens and candidates, so that ranks add up
sums and divide by the number of candidates of all of them.

Shapes: B requests of this rank with n tokens, of which C are candidates; K categories; T tasks. Any
of B, n and C may be 0 on a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, Lookup
from dlrm.optim.dense_optimizers import DenseOptimizer
from dlrm.train.dense_part import as_tf_variable, plain_name
from dlrm.train.health import Health, checks
from dlrm.train.step import Routes, bad_count
from dlrm_v3.config import HstuConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.model.hstu import Hstu
from dlrm_v3.model.inputs import ModelInputs, Vectors, make_inputs
from dlrm_v3.model.tasks import task_labels, task_loss

TABLES = 3  # items, categories, users: each a group of its own


class LocalGradients(NamedTuple):
    """A rank's part of the loss and its gradients, for a nominal number of candidates.

    Attributes:
        loss: float32 [], this rank's sum of losses over the nominal number, not scaled.
        vectors: [n, 1, W], [K, 1, W] and [B, 1, W].
        weights: One tensor per dense weight, of its shape.
    """

    loss: tf.Tensor
    vectors: list[tf.Tensor]
    weights: list[tf.Tensor]


class HstuStep:
    """The compiled computation of a model, its tables and its ranks.

    Args:
        model: The dense part, the same on every rank.
        embedding: This rank's share of the tables items, categories and users; each must be a group
            of tables of its own.
        optimizer: Updates the dense weights.
        collective: The ranks.
        config: The shape of the model.
        nominal_candidates: Candidates of a whole global batch. The loss of a step is the mean over
            those that it has; this number only keeps the size of gradients in 16 bits.
        loss_scale: Factor on the loss while gradients are computed; it is divided out again.
        state: Further variables that a checkpoint holds, by name.

    Attributes:
        embedding: As given.
        dense: Weights and optimizer state of the dense layers, and `state`, by name.
    """

    def __init__(
        self,
        model: Hstu,
        embedding: Embedding,
        optimizer: DenseOptimizer,
        collective: Collective,
        config: HstuConfig,
        *,
        nominal_candidates: int,
        loss_scale: float = 1.0,
        state: Mapping[str, tf.Variable] | None = None,
    ) -> None:
        self.embedding = embedding
        self._model = model
        self._optimizer = optimizer
        self._collective = collective
        self._config = config
        self._nominal = float(nominal_candidates)
        self._loss_scale = loss_scale
        self._categories = embedding.table.vocab_sizes[1]

        weights = model.trainable_variables
        self._variables = [as_tf_variable(weight) for weight in weights]
        named = dict(zip(map(plain_name, weights), self._variables))
        assert len(named) == len(weights), "two weights of one name"
        collective.broadcast(self._variables)
        optimizer.build(named)
        self.dense: Mapping[str, tf.Variable] = {**named, **optimizer.state, **(state or {})}
        self._compile()

    def route(self, inputs: ModelInputs) -> Routes:
        """Finds where the rows of a batch lie; needs no weights. All ranks call it together."""
        routes: Routes = self._compiled_route(inputs.items, inputs.users)
        return routes

    def train(
        self,
        inputs: ModelInputs,
        ratings: Any,
        routes: Routes,
        following: ModelInputs,
        *,
        dense_lr: float,
        table_lr: float,
        dropout_key: int,
        signal: float = 0.0,
    ) -> tuple[Health, Routes]:
        """Takes one step on a routed batch. All ranks call it together.

        Args:
            inputs: This rank's requests.
            ratings: float32 [C].
            routes: Routes of this batch.
            following: The batch after it.
            dense_lr: Learning rate of the dense weights.
            table_lr: Learning rate of the tables.
            dropout_key: The number that gives the dropout of this step.
            signal: Above 0 if this rank was asked to stop.

        Returns:
            The figures of all ranks, before the update; `loss` is the mean over the candidates of
            the global batch. The routes of the next batch.

        Raises:
            tf.errors.InvalidArgumentError: On every rank, before anything is updated; the message
                holds `IDS_OUTSIDE` or `NOT_FINITE`.
        """
        health, next_routes = self._compiled_train(
            inputs,
            ratings,
            routes,
            following.items,
            following.users,
            tf.constant(dropout_key, tf.int64),
            dense_lr,
            table_lr,
            signal,
        )
        return health, next_routes

    def score(self, inputs: ModelInputs) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the logits of a batch. All ranks call it together.

        Returns:
            float32 [C, T], logits; int32 [], number of ids outside their table.
        """
        logits, bad_ids = self._compiled_score(inputs)
        return logits, bad_ids

    def gradients(
        self, inputs: ModelInputs, lookup: Lookup, ratings: tf.Tensor, dropout_key: tf.Tensor
    ) -> LocalGradients:
        """Differentiates this rank's part of the loss; no other rank takes part.

        Args:
            inputs: This rank's requests.
            lookup: Their vectors.
            ratings: float32 [C].
            dropout_key: int64 [].
        """
        items, categories, users = lookup.vectors  # [n, 1, W], [K, 1, W], [B, 1, W]
        with tf.GradientTape() as tape:
            tape.watch([items, categories, users])
            vectors = Vectors(items[:, 0], categories[:, 0], users[:, 0])
            logits = self._model(inputs, vectors, training=True, dropout_key=dropout_key)
            tasks = self._config.tasks
            loss = task_loss(
                logits,
                task_labels(ratings, tasks),
                tasks,
                self._config.task_weight,
                self._nominal,
            )
            scaled = loss * self._loss_scale
        found = tape.gradient(
            scaled,
            [items, categories, users, *self._variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return LocalGradients(loss, found[:TABLES], found[TABLES:])

    def _compile(self) -> None:
        """Traces nothing yet; the shapes are open, so that there is one graph of each."""
        inputs = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None], array.dtype), make_inputs(_no_requests(), 1)
        )
        ids, scalar = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.float32)
        self._compiled_route = tf.function(self._route, input_signature=[ids, ids], autograph=False)
        routes = tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype),
            self._compiled_route.get_concrete_function().structured_outputs,
        )
        key = tf.TensorSpec([], tf.int64)
        ratings = tf.TensorSpec([None], tf.float32)
        self._compiled_train = tf.function(
            self._train,
            input_signature=[inputs, ratings, routes, ids, ids, key, scalar, scalar, scalar],
            autograph=False,
        )
        self._compiled_score = tf.function(self._score, input_signature=[inputs], autograph=False)

    def _route(self, items: tf.Tensor, users: tf.Tensor) -> Routes:
        """The graph of `route`; the categories are few, so a step takes all of them."""
        categories = tf.range(self._categories, dtype=tf.int32)
        return self.embedding.route([ids[:, None] for ids in (items, categories, users)])

    def _train(
        self,
        inputs: ModelInputs,
        ratings: tf.Tensor,
        routes: Routes,
        next_items: tf.Tensor,
        next_users: tf.Tensor,
        dropout_key: tf.Tensor,
        dense_lr: tf.Tensor,
        table_lr: tf.Tensor,
        signal: tf.Tensor,
    ) -> tuple[Health, Routes]:
        """The graph of `train`."""
        next_routes = self._route(next_items, next_users)
        lookup = self.embedding.lookup(routes)
        local = self.gradients(inputs, lookup, ratings, dropout_key)
        # In float32: a sum of float16 values may overflow where none of them has.
        vector_sum = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in local.vectors])
        bad_ids = tf.cast(bad_count(routes), tf.float32)
        count = tf.cast(tf.size(ratings), tf.float32)
        own = [Health(local.loss, bad_ids, vector_sum, signal).pack(), count]
        # The exchange whose outcome may end the step comes last: then no other is under way.
        received = self.embedding.exchange_gradients(lookup, local.vectors)
        # The figures that all ranks need are averaged with the gradients, in one exchange.
        means = self._collective.mean([*own, *local.weights], name="dense")
        health, count, gradients = Health.unpack(means[0]), means[1], means[2:]
        size = self._collective.size
        # A mean over ranks of an integer may be off by a rounding.
        share = self._nominal / tf.maximum(tf.round(count * size), 1.0)
        # Every update is computed from a learning rate, so none comes before the checks.
        with tf.control_dependencies(checks(health, gradients)):
            dense_lr, table_lr = tf.identity(dense_lr), tf.identity(table_lr)
        scale = share / self._loss_scale
        self.embedding.update_rows(lookup, received, table_lr, scale)
        self._optimizer.apply(gradients, dense_lr, scale * size)
        return health._replace(loss=health.loss * size * share), next_routes

    def _score(self, inputs: ModelInputs) -> tuple[tf.Tensor, tf.Tensor]:
        """The graph of `score`."""
        routes = self._route(inputs.items, inputs.users)
        vectors = Vectors(*(part[:, 0] for part in self.embedding.lookup(routes).vectors))
        return self._model(inputs, vectors, training=False), bad_count(routes)


def _no_requests() -> RequestBatch:
    """A batch without requests, for the types of its arrays."""
    from numpy import empty, float32, int32, int64, zeros

    none, reals = empty(0, int32), empty(0, float32)
    return RequestBatch(none, none, none, empty(0, int64), zeros(1, int32), none, reals, reals)
