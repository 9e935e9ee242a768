"""What this process computes on: its GPU, or its share of the cores.

Knows nothing of models or of other ranks.
"""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

MOST_LANES = 8  # the graph grows with the lanes; beyond, each lane gets several cores


def claim(local_rank: int, *, whole_operations: bool) -> None:
    """Takes the local rank's GPU or, without GPUs, sets how cores are used. Before any tensor.

    Args:
        local_rank: this process among those of its machine.
        whole_operations: run each operation on one core and several at a time (`lanes`), rather
            than each on all cores.
    """
    # A process whose TensorFlow already runs keeps the device and threads that it has.
    with contextlib.suppress(RuntimeError):
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            gpu = gpus[local_rank % len(gpus)]
            tf.config.set_visible_devices(gpu, "GPU")
            tf.config.experimental.set_memory_growth(gpu, True)
            return
        cores = len(os.sched_getaffinity(0))
        at_a_time = min(cores, MOST_LANES)
        tf.config.threading.set_intra_op_parallelism_threads(
            cores // at_a_time if whole_operations else cores
        )
        # At least two, so that an exchange between ranks does not stop the computation.
        tf.config.threading.set_inter_op_parallelism_threads(max(2, at_a_time))


def lanes() -> int:
    """How many independent pieces of work this process should be given at a time."""
    if tf.config.list_logical_devices("GPU"):
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_LANES)
