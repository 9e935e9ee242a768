"""A Keras DLRM on keras-rs' `DistributedEmbedding`, with TensorFlow; a custom training loop."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version

# Read when Keras is imported.
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_rs
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from benchmarks.peers.case import Floats, Layers, TrainCase
from dlrm.data import Batch


def initial(values: Floats) -> keras.initializers.Initializer:
    """An initializer that gives these values, once."""
    return lambda shape, dtype=None: tf.constant(np.array(values).reshape(shape))


def mlp(x: keras.KerasTensor, weights: Layers, last_relu: bool) -> keras.KerasTensor:
    """Applies dense layers with ReLU between them, with these first weights."""
    for index, (kernel, bias) in enumerate(weights):
        relu = last_relu or index < len(weights) - 1
        x = layers.Dense(
            kernel.shape[1],
            activation="relu" if relu else None,
            kernel_initializer=initial(kernel),
            bias_initializer=initial(bias),
        )(x)
    return x


class KerasPairs(layers.Layer):
    """The dot products of all pairs of vectors: [B, F, W] -> [B, F (F - 1) / 2]."""

    def call(self, vectors: tf.Tensor) -> tf.Tensor:
        """Multiplies; the lower triangle is taken row by row, which is faster than a gather."""
        products = keras.ops.matmul(vectors, keras.ops.transpose(vectors, (0, 2, 1)))
        rows = [products[:, row, :row] for row in range(1, vectors.shape[1])]
        return keras.ops.concatenate(rows, 1)


class KerasRsSystem:
    """The model, its optimizer and the batches as tensors.

    Args:
        case: What to train.
        batches: The batches.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self, case: TrainCase, batches: Sequence[Batch]) -> None:
        cores = len(os.sched_getaffinity(0))
        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
        packages = ("keras-rs", "keras", "tensorflow-cpu")
        self.versions = ", ".join(f"{package} {version(package)}" for package in packages)
        rows = case.rows()
        names = [f"table_{table}" for table in range(len(case.vocab_sizes))]
        self._tables = keras_rs.layers.DistributedEmbedding(
            {
                name: keras_rs.layers.FeatureConfig(
                    name,
                    keras_rs.layers.TableConfig(
                        name,
                        vocabulary_size=size,
                        embedding_dim=case.width,
                        initializer=initial(rows[first : first + size]),
                        combiner="sum",
                    ),
                    input_shape=(case.batch,),
                    output_shape=(case.batch, case.width),
                )
                for name, first, size in zip(names, case.first_keys, case.vocab_sizes)
            }
        )
        bottom, top = case.layers()
        dense = layers.Input((case.num_dense,), case.batch)
        ids = {name: layers.Input((), case.batch, dtype="int32", name=name) for name in names}
        first = mlp(dense, bottom, True)
        found = self._tables(ids)
        vectors = keras.ops.stack([first, *(found[name] for name in names)], 1)
        logits = mlp(keras.ops.concatenate([first, KerasPairs()(vectors)], 1), top, False)
        model = keras.Model([dense, ids], logits)
        loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(case.lr)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(dense: tf.Tensor, ids: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model([dense, ids], training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables))
            return loss

        self._step, self._names = step, names
        self._batches = [
            (
                tf.constant(batch.dense),
                {name: tf.constant(batch.ids[:, table]) for table, name in enumerate(names)},
                tf.constant(batch.labels[:, None]),
            )
            for batch in batches
        ]

    def train(self, batches: Sequence[int]) -> tuple[list[float], list[float]]:
        """See `Trainable.train`."""
        seconds, losses = [], []
        for number in batches:
            begin = time.perf_counter()
            losses.append(float(self._step(*self._batches[number])))
            seconds.append(time.perf_counter() - begin)
        return seconds, losses

    def rows(self, ids: NDArray[np.int32]) -> Floats:
        """See `Trainable.rows`."""
        tables = self._tables.get_embedding_tables()
        found = [tf.gather(tables[name], ids[:, table]) for table, name in enumerate(self._names)]
        return np.stack(found, 1)


def build(case: TrainCase, batches: Sequence[Batch], form: str) -> KerasRsSystem:
    """Builds the model."""
    return KerasRsSystem(case, batches)
