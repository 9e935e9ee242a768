"""What this process computes on: its GPU, or its share of the cores, and the memory of either.

Independent of models and of other ranks.
"""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

from dlrm.distributed.gpu_query import query_gpus
from dlrm.distributed.host_memory import free_host_memory

MAX_LANES = 8  # the graph grows with the lanes; with more cores, each lane gets several


def claim(local_rank: int, *, core_per_operation: bool) -> None:
    """Takes the local rank's GPU or, without GPUs, sets how operations use the cores.

    Call it before any tensor is made. A process whose TensorFlow already runs keeps the device and
    the threads that it has.

    Args:
        local_rank: This process among those of its machine.
        core_per_operation: Whether each operation runs on one core, or on as few as `MAX_LANES`
            allows, so that `lanes()` of them run in parallel; if false, each uses all cores.
    """
    with contextlib.suppress(RuntimeError):  # TensorFlow already runs
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            gpu = gpus[local_rank % len(gpus)]
            tf.config.set_visible_devices(gpu, "GPU")
            tf.config.experimental.set_memory_growth(gpu, True)
            return
        cores = len(os.sched_getaffinity(0))
        parallel = min(cores, MAX_LANES)
        tf.config.threading.set_intra_op_parallelism_threads(
            cores // parallel if core_per_operation else cores
        )
        # At least two, so that an exchange between ranks does not stop the computation.
        tf.config.threading.set_inter_op_parallelism_threads(max(2, parallel))


def has_gpu() -> bool:
    """Returns whether this process computes on a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


def lanes() -> int:
    """Returns the number of independent slices of the work to compute in parallel: the lanes.

    On CPUs most operations of a training step use a single core; the slices, which do not depend on
    each other in the graph, keep the other cores busy.

    Returns:
        1 on a GPU; else the number of cores of this process, at most `MAX_LANES`.
    """
    if has_gpu():
        return 1
    return min(len(os.sched_getaffinity(0)), MAX_LANES)


def free_memory(local_size: int) -> int | None:
    """Returns the free memory of the GPU or, without GPUs, this process's share of the host's.

    Args:
        local_size: Number of processes on this machine, which share its memory.

    Returns:
        Bytes; None if the free memory cannot be determined.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        return _free_gpu_memory(int(gpus[0].name.rpartition(":")[2]))
    free = free_host_memory()
    return None if free is None else free // local_size


def _free_gpu_memory(index: int) -> int | None:
    """Returns the bytes free on the GPU that TensorFlow sees at `index`; None if unknown.

    The driver's tool names GPUs as CUDA_VISIBLE_DEVICES does, and not by TensorFlow's index.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    answer = query_gpus("memory.free", visible.split(",")[index] if visible else str(index))
    with contextlib.suppress(ValueError):  # such as "[N/A]"
        return int(answer[0]) << 20 if answer else None
    return None
