"""Arrays of NaN between canaries, for kernels that are called by their C interface."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

POISON = 0x7FC1  # the upper half of a NaN in float32, and a NaN in both 16-bit types


def dtype_of(name: str) -> np.dtype:
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


class Guarded:
    """An array of NaN between canaries, so that what is written beside it is seen."""

    MARGIN = 64

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size, kind = int(np.prod(shape)), dtype_of(dtype)
        words = kind.itemsize // 2
        self._all = np.full((size + 2 * self.MARGIN) * words, POISON, np.uint16)
        self._before = self._all.copy()
        self._inside = slice(self.MARGIN * words, (self.MARGIN + size) * words)
        self.values = self._all[self._inside].view(kind).reshape(shape)

    def assert_margins_untouched(self) -> None:
        after = self._all.copy()
        after[self._inside] = POISON
        np.testing.assert_array_equal(after, self._before)
