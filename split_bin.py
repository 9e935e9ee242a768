"""Splits a record file into column files and `metadata.json`.

    python3 split_bin.py train_data.bin data/train --slot_size_array "[...]"

This is the command line alone; the work is done by `dlrm.data.split`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from dlrm.data.split import Advance, split
    from dlrm.formats.metadata import DEFAULT_DENSE_LOG_OFFSET, RAW_TYPES, check_vocab_sizes
    from dlrm.formats.records import (
        DEFAULT_NUM_CATEGORICAL,
        DEFAULT_NUM_DENSE,
        RecordLayout,
        read_record_description,
    )


def _parse_bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text == "True"


def _parse_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = json.loads(text)
        check_vocab_sizes(sizes)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a JSON list such as [10, 20], one size a table ({error})"
        ) from None
    return tuple(sizes)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="split_bin.py", description="Split a record file into column files.")
    add = parser.add_argument
    types = RAW_TYPES
    add("input", type=Path, metavar="INPUT", help="record file, such as train_data.bin")
    add("outdir", type=Path, metavar="OUTDIR", help="folder to write, such as data/train")
    add("--slot_size_array", type=_parse_sizes, help="rows of each table, a JSON list")
    add("--label_type", choices=types, default="int32", help="how labels are stored")
    add("--dense_type", choices=types, default="int32", help="how dense values are stored")
    # A float32 cannot tell ids beyond 2**24 apart.
    add("--category_type", choices=("int32",), default="int32", help="how ids are stored")
    add("--dense_log", type=_parse_bool, default=True, help="True: the loader takes ln(x + offset)")
    add("--dense_log_offset", type=float, help="offset of the logarithm (default: 3)")
    add("--num_dense", type=int, help="dense columns (default: 13)")
    add("--num_categorical", type=int, help="categorical columns (default: 26)")
    add("--pack_ids", action="store_true", help="several ids a word: category.bin takes less room")
    parser.epilog = (
        "A records.json beside INPUT sets the defaults of the sizes, the columns and the offset. "
        "Without it and without --slot_size_array the largest id of each column gives its size."
    )
    return parser


def _layout(options: argparse.Namespace) -> RecordLayout:
    """The columns of a record: from flags, else `records.json`, else the SOK benchmark's shape."""
    description = read_record_description(options.input) or {
        "num_dense": DEFAULT_NUM_DENSE,
        "vocab_sizes": None,
        "dense_log_offset": DEFAULT_DENSE_LOG_OFFSET,
    }
    sizes = options.slot_size_array or description["vocab_sizes"]
    num_categorical = options.num_categorical
    if num_categorical is None:
        num_categorical = len(sizes) if sizes else DEFAULT_NUM_CATEGORICAL
    num_dense = options.num_dense
    offset = options.dense_log_offset
    return RecordLayout(
        num_dense=description["num_dense"] if num_dense is None else num_dense,
        num_categorical=num_categorical,
        vocab_sizes=None if sizes is None else tuple(sizes),
        label_type=options.label_type,
        dense_type=options.dense_type,
        dense_log=options.dense_log,
        dense_log_offset=description["dense_log_offset"] if offset is None else offset,
    )


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Advance | None]:
    """Shows a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn(name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments), "interrupted; nothing was kept")


def _run(arguments: Sequence[str] | None) -> int:
    started = time.perf_counter()
    options = _parser().parse_args(arguments)
    if not options.input.exists():
        raise FileNotFoundError(f"{options.input}: no such record file")
    layout = _layout(options)
    size = options.input.stat().st_size
    with _progress(options.input.name, size) as advance:
        _, samples = split(
            options.input, options.outdir, layout, advance, pack_ids=options.pack_ids
        )
    if layout.vocab_sizes is None:
        print(
            f"{options.input}: the largest ids give the vocabulary sizes; give --slot_size_array "
            "if other files hold larger ids"
        )
    seconds = time.perf_counter() - started
    print(
        f"{options.input}: {samples} samples in {seconds:.2f} s, "
        f"{size / seconds / 1e6:.0f} MB/s -> {options.outdir}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
