"""Asks NVIDIA's driver about the GPUs of this machine, through its own tool `nvidia-smi`.

TensorFlow-free; what the answers are for is the caller's concern.
"""

from __future__ import annotations

import subprocess

TIME_LIMIT = 30  # seconds; the first call after a boot loads the driver


def query_gpus(field: str, gpu: str = "") -> list[str]:
    """Returns one property of each GPU.

    Args:
        field: The property, such as `name`, `driver_version` or `memory.free` (in MiB).
        gpu: Index or UUID of the only GPU to ask about; all GPUs if empty.

    Returns:
        One value per GPU, without its unit; empty if the tool or the driver is missing or fails.
    """
    which = [f"--id={gpu}"] if gpu else []
    command = ["nvidia-smi", *which, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIME_LIMIT
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()
