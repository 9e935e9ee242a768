"""Command line of the checks: `python3 -m preprocess.verify DIR`.

Checks what preprocess or split_bin.py wrote and prints one screen about it; what is wrong is named
on stderr, a line each. The checks are `verification`'s, which training uses as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dlrm.data.verify import LEVELS, verify
from preprocess.verify_report import screen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m preprocess.verify",
        description="Check sizes, checksums, labels, dense values and ids of record files or split"
        " folders, and show what is in them. Memory: eight bytes a table row at level full.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what preprocess or split wrote")
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="full",
        help="size: descriptions and sizes only; full: every byte (default)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 if anything is wrong."""
    flags = _parser().parse_args(arguments)
    start = time.perf_counter()
    try:
        report = verify(flags.folder, flags.level, statistics=flags.level == "full")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(screen(report, time.perf_counter() - start))
    for fault in report.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
