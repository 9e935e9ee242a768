"""The model: bottom MLP, interaction and top MLP of a DLRM or a DCNv2, in Keras.

                        logit [B]
                            |
                         top MLP
                            |
             [B, I], by default I = W + T (T + 1) / 2 and padding
                            |
     interaction: products of all pairs of vectors, or
       cross layers over all, their sum, or all as they are
            |                          |
       [B, 1 x W]                  [B, T x W]
            |                          |
       bottom MLP         embedding tables, on all ranks
            |                          |
       dense [B, D]                ids [B, T]

B samples with D dense and T categorical features each; vectors have W values. The vectors are an
input here: the model is independent of tables, ranks and training. Its layers are in `dlrm/layers`.
To train another dense part, build it in `build_model`.

References: Naumov et al., Deep Learning Recommendation Model for Personalization and
Recommendation Systems, 2019, https://arxiv.org/abs/1906.00091; of the cross layers see
`dlrm.layers.cross`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import keras
import tensorflow as tf

import interact_op
from dlrm import cpu_ops
from dlrm.config import Config
from dlrm.distributed import devices
from dlrm.layers.cross import CrossLayers
from dlrm.layers.dot_interaction import dot_interaction
from dlrm.layers.interaction_shape import CONCAT, DCNV2, DOT, DOT_SHAPE, SUM, InteractionShape
from dlrm.layers.interactions import concat_interaction, sum_interaction
from dlrm.layers.mlp import MLP, FusedMLP

Interaction = Callable[..., tf.Tensor]  # bottom [batch, width], *vectors -> [batch, any width]

SEEDS_PER_MLP = 500  # each layer takes two, so models of different seeds share none
SEEDS_OF_BOTTOM = 250  # of those; the others are the cross layers'
INTERACTIONS: dict[str, Interaction] = {
    DOT: dot_interaction,
    DCNV2: concat_interaction,
    SUM: sum_interaction,
    CONCAT: concat_interaction,
}


class DLRM(keras.Model):
    """Computes logits from dense features and embedding vectors.

    Args:
        bottom_units: Units of each layer of the bottom MLP; the last equals the vectors' width.
        top_units: Units of each layer of the top MLP; the last one gives the logit.
        seed: Seed of the initial weights.
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
        interact: Combines the bottom MLP's output and the vectors for the top MLP, in place of
            TensorFlow's own operations for the kind of `shape`.
        shape: The kind of interaction, and the cross layers that follow it; dot by default.
        compile_mlps: Whether XLA compiles each MLP separately, for where it cannot compile all.
        fused_mlp: The operation that computes each MLP in place of TensorFlow's own.
    """

    def __init__(
        self,
        bottom_units: Sequence[int],
        top_units: Sequence[int],
        *,
        seed: int,
        dtype: str,
        interact: Interaction | None = None,
        shape: InteractionShape = DOT_SHAPE,
        compile_mlps: bool = False,
        fused_mlp: FusedMLP | None = None,
    ) -> None:
        super().__init__(name="dlrm", dtype=dtype)
        self._interact = interact or INTERACTIONS[shape.kind]
        both: dict[str, Any] = {"compiled": compile_mlps, "fused": fused_mlp, "dtype": dtype}
        self.bottom = MLP(
            bottom_units,
            last_relu=True,
            input_learns=False,
            seed=2 * seed * SEEDS_PER_MLP,
            name="bottom",
            **both,
        )
        self.cross = None
        if shape.cross_layers:
            self.cross = CrossLayers(
                shape.cross_layers,
                shape.cross_rank,
                compiled=compile_mlps,
                seed=2 * seed * SEEDS_PER_MLP + SEEDS_OF_BOTTOM,
                dtype=dtype,
            )
        self.top = MLP(
            top_units,
            last_relu=False,
            input_learns=True,
            seed=(2 * seed + 1) * SEEDS_PER_MLP,
            name="top",
            **both,
        )

    def call(self, dense: tf.Tensor, vectors: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor:
        """Computes the logits of a batch.

        Args:
            dense: float32 [B, D].
            vectors: [B, T, W]; the tables may come as several tensors.

        Returns:
            float32 [B].
        """
        bottom = self.bottom(dense)  # [B, W]
        vectors = [tf.cast(tensor, bottom.dtype) for tensor in tf.nest.flatten(vectors)]
        interaction = self._interact(bottom, *vectors)  # [B, width of the interaction]
        if self.cross is not None:
            interaction = self.cross(interaction)
        return tf.cast(tf.squeeze(self.top(interaction), axis=1), tf.float32)


def build_model(config: Config) -> DLRM:
    """Builds the model that the settings describe.

    Raises:
        OSError: A fused operation is not built.
    """
    settings = config.model
    shape = settings.interaction_shape
    fuses_mlps = settings.fuses_mlps_on_cpus and not devices.has_gpu()
    return DLRM(
        settings.bottom_mlp,
        settings.top_mlp,
        seed=config.run.seed,
        dtype=f"mixed_{settings.amp_dtype}" if settings.amp else "float32",
        interact=interact_op.load() if settings.custom_interact else None,
        shape=shape,
        # XLA has no fused operations: the MLPs are then compiled around them.
        compile_mlps=settings.xla and not settings.whole_graph_xla,
        fused_mlp=cpu_ops.load().fused_mlp if fuses_mlps else None,
    )
