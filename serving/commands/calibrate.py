"""`python3 -m serving calibrate`: the flags of a calibration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dlrm import cli

_METHODS = ("minmax", "percentile", "entropy")
_DEFAULT_SAMPLES = 1 << 17


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = "Find the ranges that int8 MLPs need, by running training samples through the model."
    parser = commands.add_parser("calibrate", help=text, description=text)
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint, or a --checkpoint_dir, whose newest checkpoint is used",
    )
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="split folder of the training samples"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="file to write, for export --calibration=FILE"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=_DEFAULT_SAMPLES,
        help=f"number of samples, taken at equal distances (default: {_DEFAULT_SAMPLES:,})",
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default=_METHODS[0],
        help="range of a column: its least and greatest value, its percentiles, or TensorRT's "
        f"entropy calibration, one range a layer (default: {_METHODS[0]})",
    )
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from dlrm.checkpoint.describe import newest
    from serving.calibration import calibrate

    cli.allow_many_files()
    if not flags.out.absolute().parent.is_dir():
        raise ValueError(
            f"{flags.out}: expected to write into a folder that exists, found none; make it first"
        )
    checkpoint = newest(flags.checkpoint)
    found = calibrate(checkpoint, flags.data, flags.samples, flags.method)
    found.write(flags.out)
    print(
        f"{flags.out}: ranges of {len(found.ranges)} layers by {found.method}, seen on "
        f"{found.samples:,} samples with the weights of {checkpoint}"
    )
    return 0
