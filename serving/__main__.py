"""Command line of serving: `python3 -m serving COMMAND`.

It gathers the commands; each module of `serving.commands` defines the flags of its own and imports
what it needs only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dlrm import cli
from serving.commands import (
    accuracy,
    calibrate,
    count,
    evaluate,
    export,
    info,
    loadgen,
    repository,
    serve,
    verify,
)

_COMMANDS = (
    *(export, calibrate, count, info, verify, evaluate),
    *(serve, repository, loadgen, accuracy),
)  # in the order of --help


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python3 -m serving",
        description="Export a trained model, measure what quantisation costs, and serve it.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    with cli.project_environment():
        return int(flags.run(flags))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
