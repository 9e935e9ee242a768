"""`python3 -m serving count`: how often each row is used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = (
        "Count how often each row is used, for --row_frequencies: in a split folder, or from the"
        " dictionaries of preprocess."
    )
    parser = commands.add_parser("count", help=text, description=text)
    parser.add_argument(
        "data", type=Path, nargs="?", metavar="DATA", help="split folder, such as data/train"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    parser.add_argument(
        "--dictionary",
        type=Path,
        metavar="DIR",
        help="output folder of preprocess, instead of DATA",
    )
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from serving.row_frequencies import count_dictionary, count_samples, summary, write_counts

    if (flags.data is None) == (flags.dictionary is None):
        raise ValueError(
            "expected DATA or --dictionary=DIR, found "
            f"{'neither' if flags.data is None else 'both'}; give one of them"
        )
    counted = count_dictionary(flags.dictionary) if flags.dictionary else count_samples(flags.data)
    write_counts(flags.out, *counted)
    print(f"{flags.out}: {summary(counted)}")
    return 0
