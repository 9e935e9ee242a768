"""Command line of checkpoints: `python3 -m dlrm.checkpoint info|verify|export|import-sok`.

It turns flags into calls; other modules read the files. It does not import TensorFlow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable

from dlrm import cli

with cli.project_environment():
    from dlrm.checkpoint.describe import check_files, newest, overview
    from dlrm.checkpoint.export import FORMATS, export
    from dlrm.checkpoint.import_sok import import_dump
    from dlrm.formats.json_files import read_json_object
    from dlrm.formats.metadata import check_vocab_sizes

# Flushes each line, also into a pipe: a file takes minutes.
_print = partial(print, flush=True)

_PATH_HELP = "a checkpoint, or a --checkpoint_dir, whose newest checkpoint is used"


def _info(flags: argparse.Namespace) -> int:
    for line in overview(flags.path):
        _print(line)
    return 0


def _verify(flags: argparse.Namespace) -> int:
    return 0 if check_files(newest(flags.path), _print) else 1


def _export(flags: argparse.Namespace) -> int:
    export(newest(flags.path), flags.outdir, flags.format, flags.tables, _print)
    return 0


def _import_sok(flags: argparse.Namespace) -> int:
    sizes = flags.vocab_sizes
    if flags.metadata:
        remedy = "name the metadata.json of the data that the dump was trained on"
        content = read_json_object(flags.metadata, remedy)
        sizes = content.get("vocab_sizes")
    check_vocab_sizes(sizes)
    import_dump(flags.dump, flags.out, sizes, flags.names, _print)
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 0,3,5, found {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python3 -m dlrm.checkpoint", description="Work with checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> cli.Parser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    info = command("info", _info, "Describe a checkpoint, or list those in a directory.")
    info.add_argument("path", type=Path, metavar="PATH", help="a checkpoint or a --checkpoint_dir")

    check = command("verify", _verify, "Read every byte and name the damaged files and offsets.")
    check.add_argument("path", type=Path, metavar="PATH", help=_PATH_HELP)

    out = command(
        "export",
        _export,
        "Write each table as table_NNN.parquet (columns id, vector) or table_NNN.safetensors"
        " (tensor rows), and the dense weights as dense.safetensors.",
    )
    out.add_argument("path", type=Path, metavar="PATH", help=_PATH_HELP)
    out.add_argument("outdir", type=Path, metavar="OUTDIR", help="directory to write")
    out.add_argument("--format", choices=tuple(FORMATS), required=True, help="format of the files")
    out.add_argument(
        "--tables", type=_numbers, metavar="0,3,5", help="tables to export (default: all)"
    )

    sok = command(
        "import-sok",
        _import_sok,
        "Make a checkpoint of tables alone from a folder that sok.dump wrote.",
    )
    sok.add_argument("dump", type=Path, metavar="DUMP", help="folder that sok.dump wrote")
    sok.add_argument("out", type=Path, metavar="OUT", help="folder for main.py --resume=OUT")
    sizes = sok.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--metadata", type=Path, metavar="FILE", help="metadata.json of the data")
    sizes.add_argument("--vocab_sizes", type=_numbers, metavar="9,5,7", help="rows of each table")
    sok.add_argument(
        "--names",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B,C",
        help="one variable with fused keys, or one per table, in table order, with ids as keys"
        " (default: the only one of the dump)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments), "interrupted; nothing unfinished was kept")


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    cli.allow_many_files()
    return int(flags.run(flags))


if __name__ == "__main__":
    sys.exit(main())
