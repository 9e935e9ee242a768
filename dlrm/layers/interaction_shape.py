"""The kinds of interaction, and what each takes: widths, weights, products and activations.

Arithmetic alone, without TensorFlow. Shapes: T tables, F = 1 + T vectors of W values that interact,
N = F W values in all of them, and R values in the middle of a cross layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlrm.layers.interaction_width import interaction_width

DOT, DCNV2, SUM, CONCAT = "dot", "dcnv2", "sum", "concat"
INTERACTIONS = (DOT, DCNV2, SUM, CONCAT)


@dataclass(frozen=True)
class InteractionShape:
    """What combines the bottom MLP's output with the vectors, for the top MLP.

    Attributes:
        kind: `dot`: the bottom output and the dot products of all pairs. `dcnv2`: cross layers over
            all vectors, one behind the other. `sum`: the sum of all vectors. `concat`: all vectors,
            one behind the other.
        cross_layers: Number of cross layers; 0 unless the kind is `dcnv2`.
        cross_rank: R, the rank of their matrices; 0 unless the kind is `dcnv2`.
    """

    kind: str = DOT
    cross_layers: int = 0
    cross_rank: int = 0

    def output_width(self, width: int, tables: int) -> int:
        """Counts the values per sample that reach the top MLP, padding included.

        Args:
            width: W.
            tables: T.
        """
        if self.kind == DOT:
            return interaction_width(width, tables)
        return width if self.kind == SUM else (1 + tables) * width

    def multiplications(self, width: int, tables: int) -> int:
        """Counts the multiplications per sample in the products of a forward pass."""
        if self.kind == DOT:
            return tables * (tables + 1) // 2 * width
        return self.cross_layers * 2 * self.output_width(width, tables) * self.cross_rank

    def activations(self, width: int, tables: int) -> int:
        """Counts the values per sample that the backward pass needs."""
        features = 1 + tables
        if self.kind == DOT:  # the vectors stacked, and their products
            return features * (features + width)
        values = self.output_width(width, tables)
        # The input; of each cross layer the middle, what the first input is multiplied by, and the
        # output.
        return values + self.cross_layers * (self.cross_rank + 2 * values)

    def weights(self, width: int, tables: int) -> int:
        """Counts the weights."""
        values = self.output_width(width, tables)
        return self.cross_layers * (2 * values * self.cross_rank + values)


DOT_SHAPE = InteractionShape()
