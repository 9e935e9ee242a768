"""Command line of MLPerf's multi-hot data: `python3 -m preprocess.multi_hot COMMAND`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from preprocess.multi_hot import MLPERF_HOTNESS, MLPERF_TABLE_SIZES
    from preprocess.multi_hot.day_files import Day, read_days, write_day
    from preprocess.multi_hot.materialise import materialise

say = partial(print, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers such as 3,2,1, found {text!r}"
        ) from None


def _days(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected days such as 0-22 or 23, found {text!r}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m preprocess.multi_hot",
        description="Make, read and write MLPerf's multi-hot Criteo data.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("make", help="bags from a split folder of one id in each table")
    make.add_argument("folder", type=Path, metavar="IN", help="split folder, such as data/train")
    make.add_argument("out", type=Path, metavar="OUT", help="split folder to write")
    make.add_argument(
        "--hotness",
        type=_numbers,
        default=MLPERF_HOTNESS,
        help="ids in the bags of each table (default: MLPerf's)",
    )
    make.add_argument(
        "--table_sizes", type=_numbers, help="rows of each table (default: those of IN)"
    )
    make.set_defaults(run=_make)
    read = commands.add_parser("read", help="a split folder from MLPerf's files")
    read.add_argument("folder", type=Path, metavar="IN", help="folder of day_N_*.npz and .npy")
    read.add_argument("out", type=Path, metavar="OUT", help="split folder to write")
    read.add_argument("--days", type=_days, required=True, help="such as 0-22, or 23")
    read.add_argument(
        "--table_sizes",
        type=_numbers,
        default=MLPERF_TABLE_SIZES,
        help="rows of each table (default: MLPerf's)",
    )
    read.set_defaults(run=_read)
    write = commands.add_parser("write", help="MLPerf's files from a split folder with bags")
    write.add_argument("folder", type=Path, metavar="IN", help="split folder with bags")
    write.add_argument("out", type=Path, metavar="OUT", help="folder for day_N_*.npz and .npy")
    write.add_argument("--day", type=int, required=True, help="N in the files' names")
    write.set_defaults(run=_write)
    return parser


def _make(flags: argparse.Namespace) -> None:
    materialise(flags.folder, flags.out, flags.hotness, flags.table_sizes, say)


def _read(flags: argparse.Namespace) -> None:
    days = [Day.of(flags.folder, number) for number in flags.days]
    say(f"{read_days(days, flags.out, flags.table_sizes):,} samples")


def _write(flags: argparse.Namespace) -> None:
    for path in write_day(flags.folder, flags.out, flags.day):
        say(path)


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    flags.run(flags)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
