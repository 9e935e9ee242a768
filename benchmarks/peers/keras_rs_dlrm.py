"""A Keras DLRM of keras-rs' `DistributedEmbedding` and `DotInteraction`, with TensorFlow.

Two forms: `gather` takes the pairs out of the square of all products; `skip_gather` leaves them in
it, beside zeros, which makes the top MLP's first product larger. The training loop is a custom one.
"""

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

SKIP_GATHER = "skip_gather"


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


def spread_pairs(mlp_layers: Layers, width: int, vectors: int) -> Layers:
    """The layers for pairs that are left in the square of all products, with zeros elsewhere.

    Args:
        mlp_layers: The top MLP's; the first kernel's rows are the bottom output's and the pairs'.
        width: Values of a vector.
        vectors: Number of vectors that interact.
    """
    (kernel, bias), *others = mlp_layers
    wide = np.zeros((width + vectors * vectors, kernel.shape[1]), np.float32)
    wide[:width] = kernel[:width]
    rows, columns = np.tril_indices(vectors, -1)
    wide[width + rows * vectors + columns] = kernel[width:]
    return [(wide, bias), *others]


class KerasRsSystem:
    """The model, its optimizer and the batches as tensors.

    Args:
        case: What to train.
        batches: The batches.
        form: The form of the model.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self, case: TrainCase, batches: Sequence[Batch], form: str) -> None:
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
        vectors = [first, *(found[name] for name in names)]
        if form == SKIP_GATHER:
            top = spread_pairs(top, case.width, len(vectors))
        interact = keras_rs.layers.DotInteraction(skip_gather=form == SKIP_GATHER)
        logits = mlp(keras.ops.concatenate([first, interact(vectors)], 1), top, False)
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
    return KerasRsSystem(case, batches, form)
