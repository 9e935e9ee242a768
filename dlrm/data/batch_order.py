"""The order in which an epoch takes its batches, if not as they come.

Numbers only: what a batch is, is no concern of this module.
"""

from __future__ import annotations

import numpy as np

from dlrm.formats import splitmix64


def batch_order(batches: int, seed: int, epoch: int) -> list[int]:
    """Returns a random order of the numbers 0 to batches - 1, the same on every machine.

    A resumed run computes it again, so nothing of it is stored.

    Args:
        batches: How many there are.
        seed: Any integer; another seed gives another order.
        epoch: Number of the epoch; another epoch gives another order.
    """
    origin = splitmix64.hashed(np.array([seed % 2**64], np.uint64))
    stream = splitmix64.hashed(origin + np.uint64(epoch)) ^ origin
    numbers = np.arange(batches, dtype=np.uint64)
    keys = splitmix64.hashed(stream + numbers * np.uint64(splitmix64.GAMMA))
    order: list[int] = np.argsort(keys, kind="stable").tolist()
    return order
