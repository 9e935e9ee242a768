"""Reports what this Python environment has for training on GPUs and what is missing.

    python3 -m tools.doctor        or        make sok-check

Each library is asked in a separate process, so that one which cannot be loaded, or crashes, is a
line of the report and does not end it. Independent of models, data and runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlrm import cli
from dlrm.distributed.gpu_query import query_gpus
from dlrm.reporting.machine import versions
from tools.probes.answer import MARK

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 300  # seconds; the first import of TensorFlow from a slow disk takes a minute
PROBES = {
    name: f"tools.probes.probe_{name}" for name in ("tensorflow", "horovod", "sok", "interact")
}


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        versions: Versions of Python and of the installed packages, keyed by name.
        driver: Version of NVIDIA's driver; None without one.
        cuda: The CUDA version that TensorFlow was built for; None if it was built for CPUs.
        gpus: Name and compute capability of each GPU that TensorFlow sees.
        exchanges: Which of NCCL, Gloo and MPI Horovod was built with.
        sok_kernels: The kinds of device, such as GPU, that each operation of SparseOperationKit has
            a kernel for, keyed by operation.
        interact: The kinds of device that the fused interaction has a kernel for.
        problems: What is missing, with the remedy; one line each.
    """

    versions: dict[str, str]
    driver: str | None = None
    cuda: str | None = None
    gpus: list[str] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)
    sok_kernels: dict[str, list[str]] = field(default_factory=dict)
    interact: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class ProbeError(Exception):
    """A library could not be asked; the message is one line and says why."""


def ask(probe: str) -> Any:
    """Runs a probe in a separate process and returns its answer.

    Args:
        probe: A key of `PROBES`.

    Raises:
        ProbeError: The probe failed, crashed or did not end.
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", PROBES[probe]],
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
    messages = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    raise ProbeError(messages[-1])


def driver_version() -> str | None:
    """Returns the version of NVIDIA's driver; None without a driver, or without a GPU it knows."""
    return next(iter(query_gpus("driver_version")), None)


def diagnose() -> Diagnosis:
    """Asks all libraries, which takes some seconds for each."""
    found = Diagnosis(versions(), driver=driver_version())
    report = found.problems.append
    if "tensorflow" not in found.versions:
        report("TensorFlow is not installed: make setup, or make sok for TensorFlow 2.14")
        return found

    try:
        answer = ask("tensorflow")
    except ProbeError as error:
        report(f"TensorFlow cannot be imported: {error}")
        return found
    found.cuda = answer["cuda"]
    for gpu in answer["gpus"]:
        capability = ".".join(map(str, gpu.get("compute_capability", ["unknown"])))
        found.gpus.append(f"{gpu.get('device_name', 'a GPU')}, compute capability {capability}")
    if not found.gpus and found.driver:
        report(
            f"TensorFlow sees no GPU, although the driver {found.driver} is installed: "
            f"this build needs the libraries of CUDA {found.cuda or '(none: it is for CPUs)'}"
        )
    elif not found.gpus:
        report("no GPU, or no driver for it: training runs on the CPU")

    _examine_horovod(found)
    _examine_sok(found)
    try:
        found.interact = ask("interact")
    except ProbeError as error:
        report(f"no fused interaction: {str(error).removeprefix('OSError: ')}")
    return found


def _examine_horovod(found: Diagnosis) -> None:
    """Adds what Horovod can exchange, and what it lacks."""
    if "horovod" not in found.versions:
        found.problems.append("Horovod is not installed, so only one rank can run: make setup")
        return
    try:
        found.exchanges = ask("horovod")
    except ProbeError as error:
        found.problems.append(f"Horovod cannot be imported: {error}")
        return
    if "NCCL" not in found.exchanges:
        found.problems.append(
            "Horovod was built without NCCL, so GPUs exchange through the host's memory: make sok"
        )


def _examine_sok(found: Diagnosis) -> None:
    """Adds the kernels of SparseOperationKit, and what it lacks."""
    if "merlin-sok" not in found.versions:
        found.problems.append("SparseOperationKit, for --embedding=sok, is not installed: make sok")
        return
    try:
        found.sok_kernels = ask("sok")
    except ProbeError as error:
        found.problems.append(f"SparseOperationKit cannot be imported: {error}")
        return
    if not found.gpus and not any("CPU" in devices for devices in found.sok_kernels.values()):
        found.problems.append("SparseOperationKit cannot be used here: its operations need a GPU")


def format_report(found: Diagnosis) -> list[str]:
    """Returns the lines of the report, one for each item."""

    def kernels(devices: list[str]) -> str:
        return "kernels for " + " and ".join(devices) if devices else "no kernel"

    report = [f"{name} {version}" for name, version in found.versions.items()]
    report.append(f"driver {found.driver or 'none'}")
    if "tensorflow" in found.versions:
        report.append(f"TensorFlow's CUDA {found.cuda or 'none'}")
    report += [f"GPU {index}: {gpu}" for index, gpu in enumerate(found.gpus)] or ["GPUs none"]
    report.append(f"Horovod's exchanges: {', '.join(found.exchanges) or 'none'}")
    report += [
        f"SOK op {op}: {kernels(devices)}" for op, devices in sorted(found.sok_kernels.items())
    ]
    report.append(f"fused interaction: {kernels(found.interact)}")
    return report + [f"missing: {problem}" for problem in found.problems]


def main() -> int:
    """Prints the report; returns the exit code, which is 0 also if something is missing."""
    parser = cli.Parser(
        prog="python3 -m tools.doctor",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.parse_args()
    print("\n".join(format_report(diagnose())))
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
