"""The command line of tools.gpu_check: runs the checks on all ranks and reports on rank 0."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import tools.gpu_check
from dlrm import cli
from dlrm.config import Config
from dlrm.distributed import devices
from dlrm.train.build import join
from tools.gpu_check.checks import CHECKS, run_check
from tools.gpu_check.setup import CheckSetup

VERDICTS = ("FAIL", "skip", "pass")  # the first one of any rank is that of the check


def main() -> int:
    """Prints one line for each check and returns the exit code.

    Raises:
        ValueError: There is no GPU and --cpu was not given.
    """
    parser = cli.Parser(
        prog="python3 -m tools.gpu_check",
        description=(tools.gpu_check.__doc__ or "").splitlines()[0],
        epilog="\n".join(["checks:", *(f'  "{name}"' for name in CHECKS)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("gpu_check.json"),
        metavar="FILE",
        help="file for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=65536,
        metavar="N",
        help="global batch size (default: %(default)s)",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="check only what needs no GPU (default: expect a GPU)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CHECKS),
        default=list(CHECKS),
        metavar="CHECK",
        help="checks to run, their names as listed below, in quotes (default: all)",
    )
    flags = parser.parse_args()
    collective = join(Config.of(use_synthetic_dataset=True))
    if not devices.has_gpu() and not flags.cpu:
        raise ValueError("expected a GPU, found none; set --cpu to check what needs no GPU")
    setup = CheckSetup(collective, flags.batch)
    results = []
    for name in flags.only:
        # A check that fails on one rank has failed on all.
        texts = collective.gather_text(json.dumps(run_check(name, setup), default=str))
        of_ranks = [json.loads(text) for text in texts]
        result = min(of_ranks, key=lambda result: VERDICTS.index(result["verdict"]))
        results.append(result)
        if collective.rank == 0:
            timing = f"{result['seconds']:6.1f} s"
            print(f"{result['verdict']}  {name:34} {timing}  {result['words']}", flush=True)
    count = Counter(result["verdict"] for result in results)
    if collective.rank == 0:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")
        print(
            f"{count['pass']} passed, {count['FAIL']} failed, {count['skip']} skipped: {flags.json}"
        )
    return int(count["FAIL"] > 0)
