"""HSTU's layers on our fused operations, compared with plain PyTorch.

    python3 -m benchmarks.hstu [--peer_python PYTHON] [--lengths N ...] [--rounds N] [--plot FILE]

Training is the forward and backward pass of layers over sequences of uneven length, with 32
candidates each; inference is the forward pass of histories with many candidates, of which we
compute each history once and keep its keys and values. PyTorch runs the same layers in its two
plain forms, jagged and padded. Shapes, inputs, weights, types (float32) and threads are equal, and
the results are compared.

Each contender runs in a process of its own. They take turns; a ratio is the median over the rounds
of the ratios within a round. The bound is the time that the necessary products would take at the
rate of a large one, measured in the same rounds. Memory is the most that a process held resident,
less what it held when its libraries were loaded: inputs, weights and what lies between.

PyTorch is not needed by anything else; requirements/serving-peers.txt names its version, and
--peer_python the environment that has it. Without it, our figures stand alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.hstu_cases import THREADS, HstuCase
    from benchmarks.hstu_ours import PRODUCT, SQUARE
    from benchmarks.hstu_plot import Measured, plot_speed
    from benchmarks.ranks import ROOT

KINDS = ("train", "infer")
LENGTHS = (128, 512, 2048, 8192)
TOKENS = 8192  # of the histories of a case, if they were all of the longest one's length
TRAINED, SCORED = 32, 2048  # candidates of a request in training and at inference, as published
STACK = 3  # layers
OURS, JAGGED, PADDED = "ours", "torch jagged", "torch padded"
TOLERANCE = 2e-3  # of the largest value; sums of 8,192 float32 terms are in other orders
PEERS_REMEDY = "pip install -r requirements/serving-peers.txt, and give --peer_python"


class HstuWorker:
    """A contender's process, seen from the benchmark.

    Args:
        python: The interpreter.
        module: `benchmarks.hstu_ours` or `benchmarks.hstu_torch`.

    Raises:
        ValueError: It ended; the message holds the end of what it wrote.
    """

    def __init__(self, python: str, module: str) -> None:
        self._name = f"{python} -m {module}"
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(THREADS)},
        )

    def measure(self, case: HstuCase, form: str, seconds: float) -> dict[str, Any]:
        """Repeats a case for a while; returns what `hstu_cases.work` answers."""
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        command = {"case": asdict(case), "form": form, "seconds": seconds}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read()[-2000:]
            raise ValueError(f"{self._name} ended; its last lines are:\n{lines}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def workers(peer: str | None) -> Iterator[dict[str, HstuWorker]]:
    """Starts a process for each contender, and one for the large product."""
    modules = {
        OURS: (sys.executable, "benchmarks.hstu_ours"),
        PRODUCT: (sys.executable, "benchmarks.hstu_ours"),
    }
    if peer:
        modules.update(dict.fromkeys((JAGGED, PADDED), (peer, "benchmarks.hstu_torch")))
    found: dict[str, HstuWorker] = {}
    try:
        for name, module in modules.items():
            found[name] = HstuWorker(*module)
        yield found
    finally:
        for worker in found.values():
            worker.close()


def cases(kind: str, longest: int) -> list[HstuCase]:
    """A layer, and a stack of them, over sequences of about as many positions at all lengths."""
    if kind == "train":
        requests, targets = max(1, TOKENS // longest), TRAINED
    else:
        requests, targets = max(1, TOKENS // (longest + SCORED)), SCORED
    return [HstuCase(kind, longest, requests, targets, layers) for layers in (1, STACK)]


def measure(case: HstuCase, peer: str | None, rounds: int, seconds: float) -> Measured:
    """Measures a case in fresh processes, in turn.

    Raises:
        ValueError: A contender failed, or its results are not ours.
    """
    times: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    with workers(peer) as found:
        for _ in range(rounds):
            samples = {}
            for name, worker in found.items():
                form = {JAGGED: "jagged", PADDED: "padded"}.get(name, name)
                answer = worker.measure(case, form, seconds)
                times.setdefault(name, []).append(answer["seconds"])
                peaks[name], samples[name] = answer["peak"], np.array(answer["sample"])
            check({name: values for name, values in samples.items() if name != PRODUCT}, case)
    product = 2 * SQUARE**3 / statistics.median(times.pop(PRODUCT))
    return Measured(case, times, peaks, product)


def check(samples: dict[str, Any], case: HstuCase) -> None:
    """Compares the contenders' results.

    Raises:
        ValueError: They differ by more than rounding.
    """
    ours = samples[OURS]
    for name, values in samples.items():
        error = float(np.abs(values - ours).max() / np.abs(ours).max())
        if not error < TOLERANCE:
            raise ValueError(
                f"{case}: expected the same results of {name} and ours, found a difference of "
                f"{error:.1e} of the largest value; look for the layer that changed"
            )


def lines(found: Measured) -> Iterator[str]:
    """The figures of a case as lines of a table."""
    case = found.case
    work = case.operations()
    for name, seconds in found.seconds.items():
        median = statistics.median(seconds)
        faster = [b / a for a, b in zip(found.seconds[OURS], seconds)]
        ratio = (
            f"ours {statistics.median(faster):.2f} times as fast "
            f"({min(faster):.2f} - {max(faster):.2f})"
        )
        yield (
            f"  {case.longest:5} x {case.requests:2}  {case.layers} layers  {name:12} "
            f"{median * 1e3:8.1f} ms  {case.tokens / median:9,.0f} tokens/s  "
            f"{work / median / found.product:4.2f} of the bound  "
            f"{found.peaks[name] / 2**20:6,.0f} MiB  {'' if name == OURS else ratio}"
        )


def find_peer(python: str) -> str | None:
    """The interpreter that has PyTorch; None if there is none."""
    try:
        command = [python, "-c", "import torch"]
        found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise ValueError(f"--peer_python: expected an interpreter, found {python}") from error
    return python if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table and writes a picture; returns the exit code."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer_python", default=sys.executable, help="interpreter that has PyTorch")
    add("--lengths", type=int, nargs="+", default=LENGTHS, help="longest histories")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to measure (default: both)")
    add("--rounds", type=int, default=5, help="the medians count (default: 5)")
    add("--seconds", type=float, default=1.0, help="of a contender in a round (default: 1)")
    add("--plot", type=Path, default=Path("hstu_speed.png"), help="picture (default: %(default)s)")
    options = parser.parse_args(arguments)
    peer = find_peer(options.peer_python)
    if peer is None:
        print(f"{options.peer_python} has no PyTorch; {PEERS_REMEDY}")
    results = []
    for kind in options.kinds:
        print(f"{kind}, longest history x sequences, {THREADS} threads, float32")
        for longest in options.lengths:
            for case in cases(kind, longest):
                results.append(measure(case, peer, options.rounds, options.seconds))
                print(*lines(results[-1]), sep="\n", flush=True)
    products = [found.product / 1e9 for found in results]
    print(f"large products ran at {min(products):.0f} to {max(products):.0f} GFLOP/s")
    plot_speed(str(options.plot), results)
    print(f"picture: {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
