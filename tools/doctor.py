"""What this Python environment has for training on GPUs and what is missing: `make sok-check`.

Each library is asked in a process of its own, so one that cannot load, or dies of it, is a line of
the report and not its end. Knows nothing of models, data or runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from dlrm.distributed.gpu_query import query_gpus
from dlrm.reporting.machine import versions

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 300  # seconds; the first import of TensorFlow from a slow disk takes a minute
MARK = "doctor found "

KERNELS = """
def kernels():
    from tensorflow.python.framework import kernels
    found = {}
    for kernel in kernels.get_all_registered_kernels().kernel:
        found.setdefault(kernel.op, set()).add(kernel.device_type)
    return found
"""
PROBES = {
    "tensorflow": """
import tensorflow as tf
cuda = tf.sysconfig.get_build_info().get("cuda_version")
details = tf.config.experimental.get_device_details
gpus = [details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
answer = {"cuda": cuda, "gpus": gpus}
""",
    "horovod": """
from dlrm.distributed.collective import exchanges
answer = exchanges()
""",
    "sok": """
from dlrm.embedding.sok_storage import operations
ops, found = operations(), kernels()
answer = {op: sorted(found.get(op, ())) for op in ops}
""",
    "interact": """
import interact_op
interact_op.load()
answer = sorted(kernels()["DotInteract"])
""",
}


@dataclass
class Environment:
    """What was found.

    Attributes:
        versions: of Python and of the packages that are installed.
        driver: the version of the GPU's driver, if there is one.
        cuda: the version that TensorFlow was built for, if any.
        gpus: those that TensorFlow sees, by name and compute capability.
        exchanges: what Horovod was built with, such as NCCL.
        sok_kernels: the kinds of device that each op of SparseOperationKit has a kernel for.
        interact: the kinds of device that the fused interaction has a kernel for.
        problems: what is missing, a line each, with the remedy.
    """

    versions: dict[str, str]
    driver: Optional[str] = None
    cuda: Optional[str] = None
    gpus: list[str] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)
    sok_kernels: dict[str, list[str]] = field(default_factory=dict)
    interact: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class ProbeError(Exception):
    """A library could not be asked; says in a line why."""


def ask(probe: str) -> Any:
    """The answer of one of `PROBES`, from a process of its own.

    Raises:
        ProbeError: it failed, died or did not end.
    """
    end = f"\nimport json\nprint({MARK!r} + json.dumps(answer, default=str))"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", KERNELS + PROBES[probe] + end],
            cwd=ROOT,
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer in {TIME_LIMIT} s") from None
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    words = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    raise ProbeError(words[-1])


def driver_version() -> Optional[str]:
    """The version of NVIDIA's driver; None without one, or without a GPU that it knows."""
    return next(iter(query_gpus("driver_version")), None)


def examine() -> Environment:
    """Asks everything, which takes some seconds for each library."""
    found = Environment(versions(), driver=driver_version())
    miss = found.problems.append
    if "tensorflow" not in found.versions:
        miss("TensorFlow is not installed: make setup, or make sok for TensorFlow 2.14")
        return found

    try:
        answer = ask("tensorflow")
    except ProbeError as error:
        miss(f"TensorFlow cannot be imported: {error}")
        return found
    found.cuda = answer["cuda"]
    for gpu in answer["gpus"]:
        capability = ".".join(map(str, gpu.get("compute_capability", ["unknown"])))
        found.gpus.append(f"{gpu.get('device_name', 'a GPU')}, compute capability {capability}")
    if not found.gpus and found.driver:
        miss(
            f"TensorFlow sees no GPU though the driver {found.driver} is there: "
            f"this build needs the libraries of CUDA {found.cuda or '(none: it is for CPUs)'}"
        )
    elif not found.gpus:
        miss("no GPU, or no driver for it: training runs on the CPU")

    _examine_horovod(found)
    _examine_sok(found)
    try:
        found.interact = ask("interact")
    except ProbeError as error:
        miss(f"no fused interaction: {str(error).removeprefix('OSError: ')}")
    return found


def _examine_horovod(found: Environment) -> None:
    if "horovod" not in found.versions:
        found.problems.append("Horovod is not installed, so one rank is all: make setup")
        return
    try:
        found.exchanges = ask("horovod")
    except ProbeError as error:
        found.problems.append(f"Horovod cannot be imported: {error}")
        return
    if "NCCL" not in found.exchanges:
        found.problems.append(
            "Horovod is built without NCCL, so GPUs exchange through the host's memory: make sok"
        )


def _examine_sok(found: Environment) -> None:
    if "merlin-sok" not in found.versions:
        found.problems.append("SparseOperationKit, for --embedding=sok, is not installed: make sok")
        return
    try:
        found.sok_kernels = ask("sok")
    except ProbeError as error:
        found.problems.append(f"SparseOperationKit cannot be imported: {error}")
        return
    if not found.gpus and not any("CPU" in where for where in found.sok_kernels.values()):
        found.problems.append("SparseOperationKit can do nothing here: its ops need a GPU")


def lines(found: Environment) -> list[str]:
    """The report, one item a line."""

    def kinds(devices: list[str]) -> str:
        return "kernels for " + " and ".join(devices) if devices else "no kernel"

    report = [f"{name} {version}" for name, version in found.versions.items()]
    report.append(f"driver {found.driver or 'none'}")
    if "tensorflow" in found.versions:
        report.append(f"TensorFlow's CUDA {found.cuda or 'none'}")
    report += [f"GPU {index}: {gpu}" for index, gpu in enumerate(found.gpus)] or ["GPUs none"]
    report.append(f"Horovod's exchanges: {', '.join(found.exchanges) or 'none'}")
    report += [f"SOK op {op}: {kinds(where)}" for op, where in sorted(found.sok_kernels.items())]
    report.append(f"fused interaction: {kinds(found.interact)}")
    return report + [f"missing: {problem}" for problem in found.problems]


if __name__ == "__main__":
    print("\n".join(lines(examine())))
