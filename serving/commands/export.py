"""`python3 -m serving export`: the flags of an export."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from dlrm import cli

_TABLE_TYPES = ("float32", "float16", "int8", "int8_rows")
_DENSE_TYPES = ("float32", "int8")


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = "Make an artifact for the scorer, and a SavedModel, from a checkpoint."
    parser = commands.add_parser("export", help=text, description=text)
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint, or a --checkpoint_dir, whose newest checkpoint is used",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--dictionary",
        type=Path,
        metavar="DIR",
        help="output folder of preprocess; the artifact then takes raw values too",
    )
    parser.add_argument(
        "--tables",
        choices=_TABLE_TYPES,
        default="float32",
        help="how rows are stored: int8 has one scale a table, int8_rows one a row"
        " (default: float32)",
    )
    parser.add_argument(
        "--dense",
        choices=_DENSE_TYPES,
        default="float32",
        help="how the MLPs are stored; int8 needs --calibration (default: float32)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="what `serving calibrate` wrote"
    )
    parser.add_argument(
        "--row_frequencies",
        type=Path,
        metavar="FILE",
        help="what `serving count` wrote; rows are then stored in order of use",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="split folder on which the model card's figures are measured",
    )
    parser.add_argument(
        "--no_saved_model",
        dest="saved_model",
        action="store_false",
        help="leave the SavedModel out, which takes TensorFlow to make",
    )
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    # Before TensorFlow is loaded: what it tells is not for those who export.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from dlrm.checkpoint.describe import newest
    from serving.export import ExportOptions, export

    cli.allow_many_files()
    options = ExportOptions(
        dictionary=flags.dictionary,
        tables=flags.tables,
        dense=flags.dense,
        calibration=flags.calibration,
        row_frequencies=flags.row_frequencies,
        data=flags.data,
        saved_model=flags.saved_model,
    )
    export(newest(flags.checkpoint), flags.out, options, partial(print, flush=True))
    return 0
