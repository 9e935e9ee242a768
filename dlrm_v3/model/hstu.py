"""The HSTU model, in Keras: from embedding vectors of jagged sequences to logits of candidates.

                              logits [C, T]
                                    |
                     head: linear, swish norm, linear
                                    |
                        elementwise product [C, W]
                        |                        |
       layer norm of linear with            item tower: MLP of
       hour of day and day of week          item and category
                        |                        |
             states of candidates [C, W]         |
                        |                        |
        +-> x + [gate, attention, gated norm] W_o, for each layer
        |               |                        |
        |   gate = SiLU(u)   attention = sum of SiLU(q k) v / N over what a row sees
        |               |                        |
        |   u, v, q, k = layer norm(x) W_p [L, H (2 V + 2 A)]
        +---------------|                        |
             dropout of sqrt(W) (MLP of item + MLP of category + MLP of action)
             + vector of the position + vector of the age        [n, W]
             and one row before each request: linear of its user [B, W]
                        |                        |
             items [n, W], categories [K, W], users [B, W]: vectors from the tables

B requests with n tokens (histories and candidates), C of them candidates; L = n + B rows of W
values; H heads with A values of a query or key and V of a value; N is a fixed length; T tasks. A
row of a history sees the rows before it and itself; a candidate sees its history and itself.

The vectors are an input: the model is independent of tables, ranks, files and training.

Reference: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers
for Generative Recommendations, 2024, https://arxiv.org/abs/2402.17152, as MLPerf Inference has it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dlrm_v3 import hstu_op
from dlrm_v3.config import ACTION_WEIGHTS, HstuConfig
from dlrm_v3.hstu_op import HstuOps
from dlrm_v3.model import plain_ops
from dlrm_v3.model.inputs import ModelInputs, TargetInputs, Vectors
from dlrm_v3.model.layers import AS_STORED, MLP_EPSILON, HstuLayer, SwishMlp, linear
from dlrm_v3.model.rows import (
    Rows,
    check_bounds,
    layer_keys,
    place_rows,
    row_keys,
    rows_of,
    split_rows,
    take_rows,
    time_bucket,
    time_of_day_and_week,
)
from dlrm_v3.model.tasks import check_tasks

ACTION_STDDEV = 5.0
TARGET_POSITION = 1  # of all candidates; position 0 is the user's, later ones count back in time
SEEDS_PER_MODEL = 1000  # so that models of different seeds share none


class HistoryState(NamedTuple):
    """What candidates need of their histories.

    Attributes:
        kept: [Lh, H * (V + A)] for each layer: values and keys of the histories' rows.
        offsets: int32 [B + 1], where each request's rows begin, and the end.
        request_times: int64 [B], when each request is made.
    """

    kept: tuple[tf.Tensor, ...]
    offsets: tf.Tensor
    request_times: tf.Tensor


class Hstu(keras.Model):
    """Scores the candidates of requests, given each user's history.

    Args:
        config: Shape of the model.
        max_length: Length that attention's output is divided by: of the longest sequence in
            training, 1 + history + candidates.
        seed: Seed of the initial weights.
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
        ops: The operations, fused or plain.
        bounds: The most rows and candidates of a request, if XLA is to compile `call`, which it
            cannot with fused operations; or None.
    """

    def __init__(
        self,
        config: HstuConfig,
        max_length: int,
        *,
        seed: int,
        dtype: str,
        ops: HstuOps,
        bounds: tuple[int, int] | None,
    ) -> None:
        super().__init__(name="hstu", dtype=dtype)
        check_tasks(config.tasks)
        self.config = config
        self._ops = ops
        width, actions = config.width, len(ACTION_WEIGHTS)
        seeds = itertools.count(seed * SEEDS_PER_MODEL)
        common: dict[str, Any] = {"ops": ops, "seeds": seeds, "dtype": dtype}
        normal = keras.initializers.GlorotNormal
        small = (width, config.hidden, width)
        self.item_mlp = SwishMlp(small, name="item", initializer=normal, **common)
        self.category_mlp = SwishMlp(small, name="category", initializer=normal, **common)
        self.action_mlp = SwishMlp(
            (actions * config.action_dim, config.hidden, width),
            name="action",
            initializer=normal,
            **common,
        )
        self.hstu_layers = [
            HstuLayer(config, max_length, name=f"layer_{index}", **common)
            for index in range(config.layers)
        ]
        self.item_tower = SwishMlp((2 * width, width, width), name="tower", **common)
        self.head = SwishMlp((width, width, len(config.tasks)), name="head", is_head=True, **common)

        def weight(name: str, shape: tuple[int, ...], initial: Any) -> Any:
            return self.add_weight(shape=shape, initializer=initial, **AS_STORED, name=name)

        def wide(stddev: float) -> Any:
            return keras.initializers.RandomNormal(stddev=stddev, seed=next(seeds))

        def uniform(buckets: int) -> Any:
            limit = buckets**-0.5
            return keras.initializers.RandomUniform(-limit, limit, seed=next(seeds))

        self._actions = weight("actions", (actions, config.action_dim), wide(ACTION_STDDEV))
        self._no_action = weight("no_action", (1, actions * config.action_dim), wide(ACTION_STDDEV))
        self._user_kernel = weight("user_kernel", (width, width), normal(next(seeds)))
        self._user_bias = weight("user_bias", (width,), "zeros")
        buckets = config.position_buckets
        self._positions = weight("positions", (buckets, width), uniform(buckets))
        buckets = config.time_buckets
        self._ages = weight("ages", (buckets + 1, width), uniform(buckets))
        self._time_kernel = weight("time_kernel", (width + 4, width), normal(next(seeds)))
        self._time_bias = weight("time_bias", (width,), "zeros")
        self._time_scale = weight("time_scale", (width,), "ones")
        self._time_shift = weight("time_shift", (width,), "zeros")
        self._bounds = bounds
        self._forward = self._logits
        if bounds:
            self._forward = tf.function(self._logits, jit_compile=True, autograph=False)
        self.built = True  # All weights exist.

    def call(
        self,
        inputs: ModelInputs,
        vectors: Vectors,
        *,
        training: bool = False,
        dropout_key: Any = None,
    ) -> tf.Tensor:
        """Computes the logits of a batch.

        Args:
            inputs: B requests with n tokens, of which C are candidates.
            vectors: Items [n, W], categories [K, W], users [B, W].
            training: Whether values are dropped.
            dropout_key: int64 scalar, another one for each step: with the user, the position and
                the layer it decides which, however requests are spread over batches and ranks.

        Returns:
            float32 [C, T], in the order of the candidates.
        """
        with tf.control_dependencies(check_bounds(inputs, *self._bounds) if self._bounds else []):
            return self._forward(inputs, vectors, dropout_key if training else None)

    def _logits(self, inputs: ModelInputs, vectors: Vectors, dropout_key: Any) -> tf.Tensor:
        rows = rows_of(inputs)
        x, categories = self._first_rows(inputs, vectors, rows)  # [L, W]
        keys = None if dropout_key is None else row_keys(dropout_key, inputs, rows)
        x = self._drop(x, keys, 0, self.config.input_dropout)
        *layers, last = self.hstu_layers
        for index, layer in enumerate(layers, 1):
            attended = layer.attend(layer.project(x), rows.offsets, inputs.targets)
            attended = self._drop(attended, keys, index, self.config.output_dropout)
            x = layer.output(attended, x)
        # Nobody sees what the last layer makes of a history: its keys and values are enough.
        history, x = split_rows(x, inputs.history_rows, inputs.target_rows)
        target_offsets = tf.concat([[0], tf.cumsum(inputs.targets)], axis=0)
        attended = last.attend_kept(
            last.project(x),
            last.project_keys_and_values(history),
            rows.offsets - target_offsets,
            target_offsets,
        )
        keys = None if keys is None else tf.gather(keys, inputs.target_rows)
        attended = self._drop(attended, keys, len(self.hstu_layers), self.config.output_dropout)
        token = inputs.target_tokens
        return self._score(
            last.output(attended, x),
            take_rows(tf.cast(vectors.items, x.dtype), token),
            take_rows(categories, tf.gather(inputs.categories, token)),
            tf.gather(inputs.request_times, tf.gather(inputs.requests, token)),
        )

    def encode_history(self, inputs: ModelInputs, vectors: Vectors) -> HistoryState:
        """Computes what `score_targets` needs of the histories.

        Args:
            inputs: Requests without candidates, as `split_inputs` gives them.
            vectors: Items [n, W], categories [K, W], users [B, W].
        """
        rows = rows_of(inputs)
        x, _ = self._first_rows(inputs, vectors, rows)
        kept = []
        for layer in self.hstu_layers[:-1]:
            projected = layer.project(x)
            kept.append(layer.keys_and_values(projected))
            x = layer.output(layer.attend(projected, rows.offsets, inputs.targets), x)
        kept.append(self.hstu_layers[-1].project_keys_and_values(x))
        return HistoryState(tuple(kept), rows.offsets, inputs.request_times)

    def score_targets(
        self, state: HistoryState, targets: TargetInputs, vectors: Vectors
    ) -> tf.Tensor:
        """Computes the logits of candidates, as `call` does up to rounding.

        Args:
            state: The histories of B requests.
            targets: C candidates of these requests: all of them, or any part.
            vectors: Items [C, W] and categories [K, W]; users are not used.

        Returns:
            float32 [C, T].
        """
        dtype = self.compute_dtype
        items, categories = (tf.cast(x, dtype) for x in (vectors.items, vectors.categories))
        factor = math.sqrt(self.config.width)
        shared = self._action_rows(factor)[-1] + tf.cast(
            self._positions[TARGET_POSITION] + self._ages[0], dtype
        )
        x = self.item_mlp(items, factor=factor) + shared
        x += take_rows(self.category_mlp(categories, factor=factor), targets.categories)
        for layer, kept in zip(self.hstu_layers, state.kept):
            projected = layer.project(x)
            attended = layer.attend_kept(projected, kept, state.offsets, targets.offsets)
            x = layer.output(attended, x)
        return self._score(
            x,
            items,
            take_rows(categories, targets.categories),
            tf.gather(state.request_times, targets.requests),
        )

    def _first_rows(
        self, inputs: ModelInputs, vectors: Vectors, rows: Rows
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the rows before the first layer, [L, W]; the categories' vectors come along."""
        dtype, config = self.compute_dtype, self.config
        items, categories, users = (tf.cast(x, dtype) for x in vectors)
        factor = math.sqrt(config.width)
        history = tf.gather(rows.histories, inputs.requests)
        is_target = rows.positions >= history
        # There are few categories and actions: the MLPs see each once, not each token.
        action = tf.where(is_target, sum(ACTION_WEIGHTS) + 1, inputs.actions)
        position = tf.maximum(history - rows.positions, 0) + TARGET_POSITION
        age = tf.gather(inputs.request_times, inputs.requests) - inputs.times
        tokens = self.item_mlp(items, factor=factor)
        tokens += take_rows(self.category_mlp(categories, factor=factor), inputs.categories)
        tokens += take_rows(self._action_rows(factor), action)
        positions, ages = (tf.cast(table, dtype) for table in (self._positions, self._ages))
        tokens += take_rows(positions, tf.minimum(position, config.position_buckets - 1))
        tokens += take_rows(ages, time_bucket(age, config.time_buckets))

        enough = rows.histories >= config.min_history_for_user
        users *= tf.cast(enough, dtype)[:, None]
        user = linear(users, self._user_kernel, self._user_bias) * tf.cast(factor, dtype)
        user += positions[0] + take_rows(
            ages, time_bucket(inputs.request_times, config.time_buckets)
        )
        return place_rows(tokens, rows.of_tokens, user, rows.of_users), categories

    def _action_rows(self, factor: float) -> tf.Tensor:
        """Computes the summand of every set of actions, then that of candidates: [R, W]."""
        sets = np.arange(sum(ACTION_WEIGHTS) + 1)[:, None] & np.array(ACTION_WEIGHTS) > 0
        bits = tf.constant(sets[:, :, None], tf.float32)
        of_sets = tf.reshape(bits * self._actions, [len(sets), -1])
        table = tf.concat([of_sets, self._no_action], axis=0)
        return self.action_mlp(tf.cast(table, self.compute_dtype), factor=factor)

    def _drop(self, x: tf.Tensor, keys: Any, layer: int, rate: float) -> tf.Tensor:
        if keys is None or rate == 0:
            return x
        return self._ops.dropout(x, layer_keys(keys, layer), rate=rate)

    def _score(
        self, states: tf.Tensor, items: tf.Tensor, categories: tf.Tensor, times: tf.Tensor
    ) -> tf.Tensor:
        """Computes logits [C, T] from the last layer's rows and vectors, each [C, W]."""
        circle = tf.cast(time_of_day_and_week(times), states.dtype)
        user = linear(tf.concat([states, circle], axis=1), self._time_kernel, self._time_bias)
        scale, shift = (tf.convert_to_tensor(w) for w in (self._time_scale, self._time_shift))
        user = self._ops.layer_norm(user, scale, shift, epsilon=MLP_EPSILON, swish=False)
        item = self.item_tower(tf.concat([items, categories], axis=1))
        return tf.cast(self.head(user * item), tf.float32)


def build_model(
    config: HstuConfig, *, max_length: int, seed: int, dtype: str, fused: bool, xla: bool
) -> Hstu:
    """Builds the model; all weights exist afterwards.

    Args:
        config: Shape of the model.
        max_length: Longest sequence in training: 1 + history + candidates.
        seed: Seed of the initial weights.
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
        fused: Whether to use the fused operations, which XLA cannot compile.
        xla: Whether XLA compiles the model; it has no effect on fused operations.

    Raises:
        OSError: The fused operations are not built.
        ValueError: A task is unknown.
    """
    # XLA needs to know how many rows and candidates a request has at most.
    bounds = (max_length, max_length - 1 - config.max_history) if xla and not fused else None
    ops = hstu_op.load() if fused else plain_ops.load(*(bounds or ()))
    return Hstu(config, max_length, seed=seed, dtype=dtype, ops=ops, bounds=bounds)
