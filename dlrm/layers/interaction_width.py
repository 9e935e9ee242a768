"""The padded width of the dot interaction's output; arithmetic alone, without TensorFlow."""

from __future__ import annotations

ALIGNMENT = 8  # the width is padded to a multiple of this, for tensor cores


def interaction_width(width: int, tables: int) -> int:
    """Counts the values per sample that the dot interaction gives, padding included.

    Args:
        width: Number of values of a vector.
        tables: Number of tables; with the bottom output, one vector more interacts.
    """
    values = width + tables * (tables + 1) // 2
    return -(-values // ALIGNMENT) * ALIGNMENT
