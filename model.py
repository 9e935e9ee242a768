"""DLRM's dense part in Keras: bottom MLP, dot interaction, top MLP.

Takes embedding vectors as an input, so it knows nothing of tables, ranks or training.

Reference: Naumov et al., Deep Learning Recommendation Model for Personalization and
Recommendation Systems, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import keras
import tensorflow as tf

import interact_op
from dlrm.config import Config
from dlrm.layers.dot_interaction import dot_interaction
from dlrm.layers.mlp import MLP

Interaction = Callable[..., tf.Tensor]  # bottom [batch, width], *vectors -> [batch, any width]


class DLRM(keras.Model):
    """Logits from dense features and embedding vectors.

    Args:
        bottom_units: layers of the bottom MLP; the last equals the vectors' width.
        top_units: layers of the top MLP; the last one gives the logit.
        seed: decides the initial weights.
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
        interact: Combines the bottom MLP's output and the vectors for the top MLP.
        compile_mlps: have XLA compile each MLP by itself, for where it cannot compile all.
    """

    def __init__(
        self,
        bottom_units: Sequence[int],
        top_units: Sequence[int],
        *,
        seed: int,
        dtype: str,
        interact: Interaction = dot_interaction,
        compile_mlps: bool = False,
    ) -> None:
        super().__init__(name="dlrm", dtype=dtype)
        self._interact = interact
        seed *= 1000  # far enough apart that layers of two seeds share no initialiser
        both: dict[str, Any] = {"compiled": compile_mlps, "dtype": dtype}
        self.bottom = MLP(
            bottom_units, last_relu=True, input_first=False, seed=seed, name="bottom", **both
        )
        self.top = MLP(
            top_units, last_relu=False, input_first=True, seed=seed + 500, name="top", **both
        )

    def call(self, dense: tf.Tensor, vectors: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor:
        """Logits of a batch.

        Args:
            dense: float32 [batch, num_dense].
            vectors: [batch, tables, width]; the tables may come as several tensors.

        Returns:
            float32 [batch].
        """
        bottom = self.bottom(dense)
        vectors = [tf.cast(tensor, bottom.dtype) for tensor in tf.nest.flatten(vectors)]
        interaction = self._interact(bottom, *vectors)
        return tf.cast(tf.squeeze(self.top(interaction), axis=1), tf.float32)


def build_model(config: Config) -> DLRM:
    """Builds the model that the settings describe.

    Raises:
        OSError: the fused interaction is not built.
    """
    return DLRM(
        config.model.bottom_mlp,
        config.model.top_mlp,
        seed=config.run.seed,
        dtype=f"mixed_{config.model.amp_dtype}" if config.model.amp else "float32",
        interact=interact_op.load() if config.model.custom_interact else dot_interaction,
        # XLA has no fused interaction: the MLPs are then compiled around it.
        compile_mlps=config.model.xla and config.model.custom_interact,
    )
