"""The fault suite: what a run promises for each fault, tried at random moments on real ranks.

    python3 -m tests.faults.suite [--repeat R] [--seed S] [--only NAME ...] [--ranks N ...]

Prints one line per trial: fault, ranks, seconds, findings; ends with 1 if a promise was broken. A
seed repeats all choices, but the timing of the machine differs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from tests.faults.checkpoint_faults import (
    damaged,
    disk_full,
    killed_at_save_points,
    not_finite,
    other_data,
    other_shape,
    read_only,
)
from tests.faults.rank_faults import (
    killed_in_checkpoint,
    killed_in_evaluation,
    killed_in_training,
    launch_gives_up,
    launch_restarts,
    launch_stops,
    looping_rank,
    second_signal,
    signal_in_evaluation,
    signal_in_training,
    stopped_rank,
)
from tests.faults.trials import Trial
from tests.support.jobs import Baseline


@dataclass(frozen=True)
class Case:
    """A fault, and with how many ranks it is tried."""

    trial: Callable[[Trial], str]
    ranks: tuple[int, ...]


CASES = {
    function.__name__: Case(function, ranks)
    for function, ranks in (
        (signal_in_training, (1, 2, 3)),
        (signal_in_evaluation, (1, 2, 3)),
        (second_signal, (2, 3)),
        (killed_in_training, (1, 2, 3)),
        (killed_in_checkpoint, (1, 2, 3)),
        (killed_in_evaluation, (2, 3)),
        (stopped_rank, (2, 3)),
        (looping_rank, (1, 2, 3)),
        (killed_at_save_points, (1, 2, 3)),
        (disk_full, (1, 2, 3)),
        (read_only, (1, 2, 3)),
        (damaged, (1, 2, 3)),
        (other_shape, (1, 2, 3)),
        (other_data, (1, 2, 3)),
        (not_finite, (2, 3)),
        (launch_restarts, (2, 3)),
        (launch_gives_up, (2, 3)),
        (launch_stops, (2, 3)),
    )
}


def attempt(baseline: Baseline, name: str, ranks: int, seed: str) -> str:
    """Tries a fault once; returns what was found.

    Raises:
        AssertionError: A promise was broken.
    """
    with tempfile.TemporaryDirectory(dir=baseline.folder, prefix=f"{name}-") as folder:
        return CASES[name].trial(Trial(baseline, ranks, random.Random(seed), Path(folder)))


def main() -> int:
    """Tries every fault with every number of ranks; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="trials of each fault")
    parser.add_argument("--seed", default=str(time.time_ns()), help="decides every moment")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), help="faults")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(f"--seed={options.seed}")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        baseline = Baseline(Path(folder))
        for number, name in itertools.product(range(options.repeat), options.only):
            for ranks in sorted({*options.ranks} & {*CASES[name].ranks}):
                outcomes.append(report(baseline, name, ranks, f"{options.seed} {number}"))
    print(f"{outcomes.count(True)} passed, {outcomes.count(False)} failed")
    return 0 if all(outcomes) else 1


def report(baseline: Baseline, name: str, ranks: int, seed: str) -> bool:
    """Tries a fault once and prints a line; returns whether the promise was kept."""
    baseline.uninterrupted(ranks)  # its seconds are not the trial's
    start = time.monotonic()
    try:
        outcome, kept = attempt(baseline, name, ranks, f"{seed} {name} {ranks}"), True
    except (AssertionError, OSError, ValueError, KeyError) as error:
        outcome, kept = f"FAILED: {type(error).__name__}: {error}", False
    seconds = time.monotonic() - start
    print(
        f"{name:22} {ranks} rank{'s' if ranks > 1 else ' '} {seconds:6.1f} s  {outcome}", flush=True
    )
    return kept


if __name__ == "__main__":
    sys.exit(main())
