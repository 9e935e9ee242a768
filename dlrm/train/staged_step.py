"""A training step taken in parts, so that each part can be timed and seen by a profiler.

The parts are those of `TrainingStep`, compiled one by one and run one after the other; the device
is idle at the end of each. So a staged step takes longer than a step, whose parts overlap, and its
numbers differ from a step's by rounding alone. It trains the same weights and rows, and either may
follow the other, as long as all ranks take the same.

What is done with the time of a part is no concern of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Callable

import tensorflow as tf

from dlrm.embedding.bag_group import BagGroup
from dlrm.embedding.table_group import TableGroup
from dlrm.formats.bags import Bags
from dlrm.train.dense_part import Gradients, sum_of_all
from dlrm.train.health import Health, checks
from dlrm.train.step import Averaged, Routes, TrainingStep

ROUTE, LOOKUP, FORWARD, BACKWARD = "route", "lookup", "forward", "backward"
KEYS, VECTORS, GRADIENTS = "exchange of keys", "exchange of vectors", "exchange of gradients"
ALL_REDUCE, UPDATE = "all-reduce", "update"
# In the order in which they begin. Route and lookup go on after their exchange; the update begins
# before the exchange of gradients, as it brings them into the order of their owners.
PARTS = (ROUTE, KEYS, LOOKUP, VECTORS, FORWARD, BACKWARD, GRADIENTS, ALL_REDUCE, UPDATE)

OpenPart = Callable[[str], AbstractContextManager[object]]


class StagedStep:
    """A step in parts, over the weights, rows and ranks of a `TrainingStep`.

    Args:
        step: The step, built.
        open_part: Opens a context around a part, given its name; called once or twice for each.
    """

    def __init__(self, step: TrainingStep, open_part: OpenPart) -> None:
        self._step = step
        self._open_part = open_part
        self._weights = list(step.dense_part.weights)
        self._groups = step.embedding.groups
        dense, labels, ids = step.batch_specs
        number = tf.TensorSpec([], tf.float32)
        weights = [tf.TensorSpec(weight.shape, weight.dtype) for weight in self._weights]

        # What one function returns, the next ones take.
        each = self._each
        self._address, addressed = compiled(self._addressed, ids)
        self._exchange_keys, keys = self._exchange(method("exchange_keys"), addressed)
        self._locate, routes = compiled(each(located), addressed, keys)
        self._read, read = compiled(each(method("read")), routes)
        vectors, stored = zip(*read)
        self._exchange_vectors, arrived = self._exchange(
            method("exchange_vectors"), routes, vectors
        )
        self._arrange, vectors = compiled(each(method("arrange")), routes, arrived)
        part = step.dense_part
        self._forward, _ = compiled(part.loss, dense, vectors, labels, jit_compile=part.jit_compile)
        self._collect, gradients = compiled(each(method("collect")), routes, vectors)
        self._exchange_gradients, received = self._exchange(
            method("exchange_gradients"), routes, gradients
        )
        self._average, averaged = compiled(
            self._averaged, number, vectors, weights, routes, number, received
        )
        self._update, _ = compiled(self._updated, routes, stored, received, averaged, number)
        # Backward and forward are compiled at their first use, which must not count as a step's.
        batch = dense.shape[0]
        self._differentiate(
            tf.zeros(dense.shape),
            tuple(tf.zeros([batch, *vector.shape[1:]], vector.dtype) for vector in vectors),
            tf.zeros(labels.shape),
            lambda _, function, *arguments: function(*arguments),
        )

    def train(
        self,
        dense: tf.Tensor,
        labels: tf.Tensor,
        routes: Routes,
        next_ids: tf.Tensor | Bags,
        learning_rate: float,
        signal: float | tf.Tensor = 0.0,
    ) -> tuple[Health, Routes]:
        """Takes one step; see `TrainingStep.train`, which has the same arguments and results."""
        run = self._run
        addressed = run(ROUTE, self._address, next_ids)
        keys = run(KEYS, self._exchange_keys, addressed)
        next_routes = run(ROUTE, self._locate, addressed, keys)

        vectors, stored = zip(*run(LOOKUP, self._read, routes))
        vectors = run(VECTORS, self._exchange_vectors, routes, vectors)
        vectors = run(LOOKUP, self._arrange, routes, vectors)

        loss, of_vectors, of_weights = self._differentiate(dense, vectors, labels, run)
        collected = run(UPDATE, self._collect, routes, of_vectors)
        received = run(GRADIENTS, self._exchange_gradients, routes, collected)
        averaged = run(
            ALL_REDUCE, self._average, loss, of_vectors, of_weights, routes, signal, received
        )
        run(UPDATE, self._update, routes, stored, received, averaged, learning_rate)
        return averaged.health, next_routes

    def _run(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function as (a piece of) a part, until the device is done with it."""
        with self._open_part(part):
            result = function(*arguments)
            tf.test.experimental.sync_devices()
        return result

    def _differentiate(
        self,
        dense: tf.Tensor,
        vectors: Sequence[tf.Tensor],
        labels: tf.Tensor,
        run: Callable[..., Any],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...], list[tf.Tensor]]:
        """The loss, and the gradients of vectors and weights.

        The tape is outside of the compiled function, so TensorFlow compiles its backward pass as
        one of its own, which takes over what the forward pass computed.
        """
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            loss, scaled = run(FORWARD, self._forward, dense, vectors, labels)
        gradients = run(BACKWARD, tape.gradient, scaled, [*vectors, *self._weights])
        return loss, tuple(gradients[: len(vectors)]), gradients[len(vectors) :]

    def _each(self, call: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        """A function of tuples, one element for each group, that calls `call` for each group."""
        return lambda *arguments: tuple(call(*each) for each in zip(self._groups, *arguments))

    def _exchange(self, call: Callable[..., Any], *inputs: Any) -> tuple[Callable[..., Any], Any]:
        """As `compiled`, for each group; a rank alone need not call a graph to send nothing."""
        graph, outputs = compiled(self._each(call), *inputs)
        return (graph if self._step.size > 1 else self._each(call)), outputs

    def _addressed(self, ids: tf.Tensor | Bags) -> tuple[Any, ...]:
        parts = self._step.embedding.ids_of_groups(ids)
        return tuple(group.address(part) for group, part in zip(self._groups, parts))

    def _averaged(
        self,
        loss: tf.Tensor,
        vectors: Sequence[tf.Tensor],
        weights: list[tf.Tensor],
        routes: Routes,
        signal: tf.Tensor,
        received: Sequence[tf.Tensor],
    ) -> Averaged:
        """Figures and dense gradients of all ranks; fails if the step must not be taken."""
        local = Gradients(loss, sum_of_all(vectors), list(vectors), weights)
        squares = None
        if self._step.clips:
            squares = tf.add_n(self._each(method("squares"))(routes, received))
        shared = ()
        if self._step.embedding.shares_rows:
            shared = self._each(method("shared_gradients"))(routes, received)
        averaged = self._step.average(local, routes, signal, squares, shared)
        with tf.control_dependencies(checks(averaged.health, averaged.gradients)):
            result: Averaged = tf.nest.map_structure(tf.identity, averaged)
        return result

    def _updated(
        self,
        routes: Sequence[Any],
        stored: Sequence[tf.Tensor],
        received: Sequence[tf.Tensor],
        averaged: Averaged,
        learning_rate: tf.Tensor,
    ) -> None:
        scale = averaged.clip * self._step.row_scale
        shared = averaged.shared or [None] * len(self._groups)
        for group, route, rows, gradient, of_shared in zip(
            self._groups, routes, stored, received, shared
        ):
            group.update(route, rows, gradient, learning_rate, scale, of_shared)
        self._step.update_weights(averaged.gradients, learning_rate, averaged.clip)


def method(name: str) -> Callable[..., Any]:
    """A function that calls the method of this name of a group of any kind."""
    return lambda group, *arguments: getattr(group, name)(*arguments)


def located(group: TableGroup | BagGroup, addressed: Any, keys: Sequence[tf.Tensor]) -> Any:
    """Completes the route of a group with the keys that it received, and their counts."""
    return group.locate(addressed, *keys)


def compiled(
    function: Callable[..., Any], *inputs: Any, jit_compile: bool | None = None
) -> tuple[Callable[..., Any], Any]:
    """Compiles a function for inputs of known types.

    Args:
        function: The function.
        inputs: Shape and type of each tensor of each argument, as `tf.TensorSpec`.
        jit_compile: What `tf.function` is told of XLA.

    Returns:
        The compiled function, and shape and type of each tensor that it returns.
    """
    graph = tf.function(function, input_signature=inputs, jit_compile=jit_compile, autograph=False)
    outputs = graph.get_concrete_function().structured_outputs
    if outputs is None:
        return graph, None
    return graph, tf.nest.map_structure(lambda o: tf.TensorSpec(o.shape, o.dtype), outputs)
