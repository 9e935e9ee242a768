"""Split a record file into column files and `metadata.json`.

    python3 split_bin.py train_data.bin data/train --slot_size_array "[...]"

Bytes are copied unchanged; the types only say how the checks and the reader understand them. What a
record is and which values it may hold is `record_file`'s; this module moves bytes and names files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Callable, NoReturn

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import metadata
from dlrm.formats.checksums import RunningSum, remove_checksums, write_checksums
from dlrm.formats.packed_ids import Packing, plan
from dlrm.formats.records import (
    DEFAULT_NUM_CATEGORICAL,
    DEFAULT_NUM_DENSE,
    VALUE_BYTES,
    RecordChecker,
    RecordLayout,
    read_description,
)

COLUMN_FILES = ("label.bin", "dense.bin", "category.bin")
TEMPORARY_SUFFIX = ".tmp"

# A block and its three copies stay in the second-level cache between reading and writing, which is
# worth more than fewer system calls.
_BLOCK_BYTES = 1 << 20

# Blocks handed to the thread of checksums at once. One costs a wake-up too many, more leave the
# shared cache.
_GROUP_BLOCKS = 4

Progress = Callable[[int], None]


def split(
    input_file: Path,
    folder: Path,
    layout: RecordLayout,
    advance: Progress | None = None,
    *,
    pack_ids: bool = False,
) -> tuple[metadata.Metadata, int]:
    """Write `label.bin`, `dense.bin`, `category.bin` and their descriptions into `folder`.

    The column files get their final names only when all are complete and on disk; `metadata.json`
    and then `checksums.json` come last. A failure removes what was written.

    Args:
        input_file: The record file.
        folder: Where to write; made if missing.
        layout: The columns of a record.
        advance: Called with the number of bytes of each block done.
        pack_ids: Whether `category.bin` gets packed ids.

    Returns:
        The metadata written, and the number of samples.

    Raises:
        ValueError: The file's size or a value in it is wrong.
        OSError: Reading or writing failed.
    """
    samples = _count_records(input_file, layout)
    packing = _plan(layout) if pack_ids else None
    finals = [folder / name for name in COLUMN_FILES]
    for final in finals:
        if final.exists() and final.samefile(input_file):
            raise ValueError(f"{input_file}: is also an output of the split; choose another OUTDIR")
    folder.mkdir(parents=True, exist_ok=True)
    temporaries = [final.with_name(final.name + TEMPORARY_SUFFIX) for final in finals]
    checker = RecordChecker(input_file, layout)
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(FileIO(input_file))
            outputs = [stack.enter_context(FileIO(path, "w")) for path in temporaries]
            sums = _split_blocks(source, outputs, samples, layout, checker, packing, advance)
            for output in outputs:
                _sync(output)
        description = metadata.Metadata(
            vocab_sizes=checker.vocab_sizes,
            label_raw_type=layout.label_type,
            dense_raw_type=layout.dense_type,
            category_raw_type="int32",
            dense_log=layout.dense_log,
            num_dense=layout.num_dense,
            dense_log_offset=layout.dense_log_offset,
            packed_ids=packing,
        )
        # Older descriptions must not survive beside newer columns.
        remove_checksums(folder)
        (folder / metadata.FILE_NAME).unlink(missing_ok=True)
        metadata.sync_folder(folder)
        for temporary, final in zip(temporaries, finals):
            os.replace(temporary, final)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    metadata.write_metadata(folder, description)
    write_checksums(folder, {name: s.value for name, s in zip(COLUMN_FILES, sums)})
    return description, samples


def _plan(layout: RecordLayout) -> Packing:
    if layout.vocab_sizes is None:
        raise ValueError(
            "--pack_ids: expected the vocabulary sizes before the first record, found neither "
            "--slot_size_array nor a records.json; give --slot_size_array"
        )
    return plan(layout.vocab_sizes)


def _count_records(path: Path, layout: RecordLayout) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: expected a record file, found something else than a file")
    samples, rest = divmod(status.st_size, layout.record_bytes)
    if rest or not samples:
        found = f"{samples} records and {rest} bytes" if rest else "an empty file"
        raise ValueError(
            f"{path}: expected whole records of {layout.record_bytes} bytes (1 label, "
            f"{layout.num_dense} dense, {layout.num_categorical} categorical columns), found "
            f"{found}; correct --num_dense and --num_categorical, or copy the file again"
        )
    return samples


def _split_blocks(
    source: FileIO,
    outputs: list[FileIO],
    samples: int,
    layout: RecordLayout,
    checker: RecordChecker,
    packing: Packing | None,
    advance: Progress | None,
) -> list[RunningSum]:
    """Copy and check every record, block by block in one set of reused buffers.

    A second thread takes the checksums, a group of blocks at a time, from one of two sets of column
    buffers while this thread fills the other.

    Returns:
        The checksum of each output.
    """
    block = max(1, _BLOCK_BYTES // layout.record_bytes)
    group = _GROUP_BLOCKS * block
    widths = (1, layout.num_dense, layout.num_categorical)
    # Each part of a record is one opaque item: NumPy then copies it whole, not value by value.
    items = [f"V{VALUE_BYTES * width}" for width in widths]
    records = np.empty(block, np.dtype([(str(part), item) for part, item in enumerate(items)]))
    if packing is not None:
        unpacked = np.empty((block, layout.num_categorical), np.int32)
        widths = (1, layout.num_dense, packing.words)
    buffers = [[np.empty((group, width), np.int32) for width in widths] for _ in range(2)]
    sums = [RunningSum() for _ in outputs]
    summing: Future[None] | None = None
    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as summer:
        for first in range(0, samples, group):
            columns = [buffer[: samples - first] for buffer in buffers[first // group % 2]]
            for start in range(0, len(columns[0]), block):
                labels, dense, category = (column[start : start + block] for column in columns)
                count = len(labels)
                ids = category if packing is None else unpacked[:count]
                _read_full(source, records[:count].view(np.uint8).data)
                for part, column in enumerate((labels, dense, ids)):
                    column.view(items[part])[:, 0] = records[str(part)][:count]
                checker.check(first + start, labels[:, 0], dense, ids)
                if packing is not None:
                    packing.pack(ids, category)
                for output, column in zip(outputs, (labels, dense, category)):
                    _write_full(output, _bytes(column))
                if advance is not None:
                    advance(count * layout.record_bytes)
            if summing is not None:
                summing.result()  # before the buffers it reads are filled anew
            summing = summer.submit(_add, sums, columns)
        assert summing is not None
        summing.result()
    return sums


def _add(sums: list[RunningSum], columns: list[NDArray[np.int32]]) -> None:
    for running, column in zip(sums, columns):
        running.update(_bytes(column))


def _bytes(values: NDArray[np.int32]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _read_full(file: FileIO, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ValueError(
                f"{os.fspath(file.name)}: the file became shorter while it was read; run again "
                "when nothing writes to it"
            )
        done += count


def _write_full(file: FileIO, view: memoryview) -> None:
    done = 0
    with _named(file):
        while done < len(view):
            done += file.write(view[done:]) or 0


def _sync(file: FileIO) -> None:
    with _named(file):
        os.fsync(file.fileno())


@contextlib.contextmanager
def _named(file: FileIO) -> Iterator[None]:
    """Give an error of the operating system the name of the file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(file.name)
        raise


def _parse_bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text == "True"


def _parse_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = json.loads(text)
        metadata.check_vocab_sizes(sizes)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a JSON list such as [10, 20], one size a table ({error})"
        ) from None
    return tuple(sizes)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="split_bin.py", description="Split a record file into column files.")
    add = parser.add_argument
    types = metadata.RAW_TYPES
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
    """Flags first, then `records.json`, then the SOK benchmark's shape."""
    description = read_description(options.input) or {
        "num_dense": DEFAULT_NUM_DENSE,
        "vocab_sizes": None,
        "dense_log_offset": metadata.DEFAULT_DENSE_LOG_OFFSET,
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
def _progress(name: str, total: int) -> Iterator[Progress | None]:
    """A progress bar on a terminal, nothing elsewhere."""
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


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    started = time.perf_counter()
    try:
        options = _parser().parse_args(arguments)
        if not options.input.exists():
            raise FileNotFoundError(f"{options.input}: no such record file")
        layout = _layout(options)
        size = options.input.stat().st_size
        with _progress(options.input.name, size) as advance:
            _, samples = split(
                options.input, options.outdir, layout, advance, pack_ids=options.pack_ids
            )
    except KeyboardInterrupt:
        print("split_bin.py: interrupted; nothing was kept", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"split_bin.py: {error}", file=sys.stderr)
        return 1
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
    sys.exit(main(sys.argv[1:]))
