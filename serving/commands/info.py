"""`python3 -m serving info`: what an artifact holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = "Describe an artifact."
    parser = commands.add_parser("info", help=text, description=text)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of an artifact")
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from serving.artifact import read_artifact
    from serving.describe import describe

    for line in describe(read_artifact(flags.artifact)):
        print(line)
    return 0
