"""How a probe hands its answer to tools.doctor: as one marked line of JSON on standard output.

The mark distinguishes the answer from what the probed library prints.
"""

from __future__ import annotations

import json

MARK = "doctor found "


def print_answer(answer: object) -> None:
    """Prints the answer of a probe.

    Args:
        answer: Anything that JSON can hold; other values become text.
    """
    print(MARK + json.dumps(answer, default=str))


def kernel_devices(operation: str) -> list[str]:
    """Returns the kinds of device, such as GPU, that TensorFlow has kernels of an operation for."""
    from tensorflow.python.framework import kernels

    found = kernels.get_registered_kernels_for_op(operation).kernel
    return sorted({kernel.device_type for kernel in found})
