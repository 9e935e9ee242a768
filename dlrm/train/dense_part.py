"""The dense part on this rank: losses, gradients and logits, computed in lanes.

No other rank takes part, and where vectors come from is no concern of this module. Shapes in it:

    B  local batch: samples of one step on this rank
    b  samples of one lane: B / lanes
    D  dense features of a sample
    T  embedding tables, looked up in groups of t tables each
    W  values in an embedding row
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf


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


class DensePart:
    """A model of dense features and vectors, and its compiled computations.

    Args:
        model: Computes logits from dense features and vectors.
        lanes: Number of independent slices of the local batch that are computed in parallel.
        loss_scale: Factor on the loss while gradients are computed.
        compiled: Whether XLA compiles it as one program.

    Attributes:
        weights: The model's trainable weights; empty until built.
        jit_compile: What `tf.function` is told of XLA.
    """

    def __init__(
        self, model: keras.Model, *, lanes: int, loss_scale: float, compiled: bool
    ) -> None:
        self.weights: Sequence[tf.Variable] = ()
        self.jit_compile = compiled or None  # False would forbid it even inside the model
        self._model = model
        self._lanes = lanes
        self._loss_scale = loss_scale
        self._compiled_gradients = tf.function(
            self._gradients, jit_compile=self.jit_compile, autograph=False
        )
        self._compiled_model = tf.function(
            model.call, jit_compile=self.jit_compile, autograph=False
        )

    def build(self, num_dense: int, tables: int, width: int) -> Mapping[str, tf.Variable]:
        """Creates the weights; returns them by name.

        Args:
            num_dense: D.
            tables: T.
            width: W.
        """
        self._model(tf.zeros([1, num_dense]), tf.zeros([1, tables, width]))
        variables = self._model.trainable_variables
        self.weights = [as_tf_variable(variable) for variable in variables]
        named = dict(zip(map(plain_name, variables), self.weights))
        assert len(named) == len(variables), "two weights of one name"
        return named

    def logits(self, dense: tf.Tensor, vectors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Computes the logits of a batch of any size, float32 [B].

        Args:
            dense: float32 [B, D].
            vectors: [B, t, W] for each group of tables.
        """
        lanes = in_lanes([dense, vectors], math.gcd(self._lanes, dense.shape[0]))
        return tf.concat([self._compiled_model(*lane) for lane in lanes], 0)

    def loss(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the mean loss and, as what is differentiated, `loss_scale` times the same.

        Args:
            dense: float32 [B, D].
            vectors: [B, t, W] for each group of tables.
            labels: float32 [B].
        """
        lanes = in_lanes([dense, vectors, labels], self._lanes)
        losses, scaled = zip(*(self._lane_loss(*lane) for lane in lanes))
        return tf.add_n(losses) / labels.shape[0], tf.add_n(scaled)

    def gradients(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> Gradients:
        """Differentiates the mean loss.

        Args:
            dense: float32 [B, D].
            vectors: [B, t, W] for each group of tables.
            labels: float32 [B].
        """
        gradients: Gradients = self._compiled_gradients(dense, vectors, labels)
        return gradients

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
        """One lane's share; its `loss` is the sum over the lane's samples, not their mean."""
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            loss, scaled = self._lane_loss(dense, vectors, labels)
        gradients = tape.gradient(scaled, [*vectors, *self.weights])
        of_vectors, of_weights = gradients[: len(vectors)], gradients[len(vectors) :]
        return Gradients(loss, sum_of_all(of_vectors), of_vectors, of_weights)

    def _lane_loss(
        self, dense: tf.Tensor, vectors: Sequence[tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One lane's sum of losses, and its share of what is differentiated.

        Args:
            dense: float32 [b, D].
            vectors: [b, t, W] for each group of tables.
            labels: float32 [b].
        """
        logits = self._model(dense, vectors)  # [b]
        loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        return loss, loss * (self._loss_scale / (self._lanes * labels.shape[0]))


def in_lanes(tensors: Sequence[Any], lanes: int) -> list[Any]:
    """Cuts each tensor of a nest into `lanes` slices along its first axis; one nest per lane.

    The lanes are independent in the graph, so each keeps a core busy with whole operations. Where
    several cores share one operation, those that finish their part first wait for the others.
    """
    slices = [tf.split(tensor, lanes) for tensor in tf.nest.flatten(tensors)]
    return [tf.nest.pack_sequence_as(tensors, lane) for lane in zip(*slices)]


def sum_of_all(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Adds up all values of all tensors, float32 []."""
    # In float32: a sum of float16 values may overflow where none of them has.
    return tf.add_n([tf.reduce_sum(tf.cast(tensor, tf.float32)) for tensor in tensors])


def plain_name(variable: keras.Variable) -> str:
    """Returns a weight's own name, such as `top_kernel_0`, in Keras 2 and 3 alike."""
    return variable.name.rpartition("/")[2].partition(":")[0]


def as_tf_variable(variable: keras.Variable) -> tf.Variable:
    """Returns the TensorFlow variable behind Keras 3's own, or Keras 2's as it is."""
    return variable if isinstance(variable, tf.Variable) else variable.value
