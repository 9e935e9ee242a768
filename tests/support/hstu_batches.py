"""Random requests, weights and vectors for tests of the HSTU model."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlrm.train.dense_part import as_tf_variable, plain_name
from dlrm_v3.config import ACTION_WEIGHTS, HstuConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.model.hstu import Hstu, build_model
from dlrm_v3.model.inputs import ModelInputs, Vectors, make_inputs

ITEMS_PER_CATEGORY = 10
CATEGORIES = 6
USERS = 50
STEP_SECONDS = 10_800

# Queries' and values' sizes differ; buckets are few, so that positions and ages exceed them.
CONFIG = HstuConfig(
    width=12,
    layers=2,
    heads=2,
    attention_dim=5,
    value_dim=7,
    hidden=10,
    max_history=20,
    min_history_for_user=4,
    position_buckets=32,
    time_buckets=24,
    tasks=("rating", "stars"),
)
MAX_LENGTH = 31  # small, for attention to count among the sums


def random_batch(histories, targets, seed=0):
    """Requests with given lengths; times rise, some events share theirs."""
    generator = np.random.default_rng(seed)
    histories, targets = np.array(histories, int), np.array(targets, int)
    offsets = np.append(0, np.cumsum(histories + targets)).astype(np.int32)
    actions, times = np.zeros(offsets[-1], np.int32), np.zeros(offsets[-1], np.int64)
    for begin, end, count in zip(offsets, offsets[1:], targets):
        history = end - begin - count
        now = generator.integers(1, 40) * STEP_SECONDS
        times[begin:end] = now
        times[begin : end - count] = np.sort(generator.integers(0, now // STEP_SECONDS, history))
        times[begin : end - count] *= STEP_SECONDS
        actions[begin : end - count] = generator.choice(ACTION_WEIGHTS, history)
    candidates = targets.sum()
    return RequestBatch(
        users=generator.integers(0, USERS, len(targets)).astype(np.int32),
        items=generator.integers(0, CATEGORIES * ITEMS_PER_CATEGORY, offsets[-1]).astype(np.int32),
        actions=actions,
        times=times,
        offsets=offsets,
        targets=targets.astype(np.int32),
        ratings=generator.choice([2.0, 3.0, 3.5, 4.0, 5.0], candidates).astype(np.float32),
        probabilities=np.full(candidates, 0.5, np.float32),
    )


def random_model(config=CONFIG, *, fused=False, xla=False, dtype="float32", seed=0):
    """A model with random weights everywhere, also where training begins with zeros and ones."""
    model = build_model(config, max_length=MAX_LENGTH, seed=seed, dtype=dtype, fused=fused, xla=xla)
    generator = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        spread = 0.3 if len(weight.shape) == 1 else weight.shape[0] ** -0.5
        mean = 1.0 if "scale" in weight.name else 0.0
        weight.assign(generator.normal(mean, spread, weight.shape))
    return model


def tables(config=CONFIG, seed=0):
    """Rows of items, categories and users, float32."""
    generator = np.random.default_rng(seed)
    rows = (CATEGORIES * ITEMS_PER_CATEGORY, CATEGORIES, USERS)
    return [generator.uniform(-1, 1, (n, config.width)).astype(np.float32) for n in rows]


def tensors(inputs: ModelInputs) -> ModelInputs:
    return ModelInputs(*(tf.constant(values) for values in inputs))


def inputs_and_vectors(batch, config=CONFIG, multiple=1):
    """What the model takes."""
    inputs = make_inputs(batch, ITEMS_PER_CATEGORY, multiple)
    items, categories, users = tables(config)
    vectors = Vectors(items[inputs.items], categories, users[inputs.users])
    return tensors(inputs), Vectors(*(tf.constant(values) for values in vectors))


def weights(model: Hstu) -> dict[str, tf.Variable]:
    """The model's weights by the names that checkpoints give them, in Keras 2 and 3 alike."""
    return {plain_name(weight): as_tf_variable(weight) for weight in model.trainable_variables}
