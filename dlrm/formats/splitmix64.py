"""SplitMix64, the generator behind shuffles, synthetic samples and initial rows of tables.

Its output for a counter does not depend on the outputs before (Steele, Lea, Flood: Fast Splittable
Pseudorandom Number Generators, 2014). The constants are part of what is written to files. This
module must not know what the words are used for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
"""The distance between two consecutive states."""

ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""The output function: z ^= z >> shift, z *= factor, for each (shift, factor) in turn."""


def mix(words: NDArray[np.uint64], scratch: NDArray[np.uint64] | None = None) -> None:
    """Applies the output function to every word, in place.

    Args:
        words: The states, uint64, any shape.
        scratch: Memory for intermediate words, of the same shape; None allocates it.
    """
    if scratch is None:
        scratch = np.empty_like(words)
    for shift, factor in ROUNDS:
        np.right_shift(words, np.uint64(shift), out=scratch)
        words ^= scratch
        if factor != 1:
            words *= np.uint64(factor)


def hashed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first output of the generator for each word as its seed."""
    words = words + np.uint64(GAMMA)
    mix(words)
    return words
