"""Command line of verification: `python3 -m preprocess.verify DIR`.

It checks what preprocess or split_bin.py wrote, prints a report of one screen, and writes one line
to stderr for each fault. The checks are those of `dlrm.data.verify`, which training uses as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from dlrm.data.verify import LEVELS, check_data
    from preprocess.verify_report import screen


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m preprocess.verify",
        description="Check sizes, checksums, labels, dense values and ids of record files or split"
        " folders, and print a summary of them. Level full needs eight bytes of memory for each"
        " table row.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder that preprocess or split_bin.py wrote"
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="full",
        help="size: check descriptions and file sizes only; full: read every byte (default)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 1 if anything is wrong."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    start = time.perf_counter()
    report = check_data(flags.folder, flags.level, statistics=flags.level == "full")
    print(screen(report, time.perf_counter() - start))
    for fault in report.faults:
        cli.print_error(fault)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
