"""What a contender is: a function that scores a batch, on as many threads as all others."""

from __future__ import annotations

from typing import Callable

import numpy as np
from numpy.typing import NDArray

# Dense features [B, D] and ids [B, T] -> logits [B].
Score = Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]]

THREADS = 2
