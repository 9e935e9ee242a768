"""Describes checkpoints for people, and checks every byte of them.

Works on files alone, without TensorFlow.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

from dlrm.checkpoint import directory
from dlrm.checkpoint.manifest import DENSE_FILE, FILE_NAME, Manifest, read_manifest
from dlrm.checkpoint.safetensors_file import BLOCK_BYTES, BlockReader, FileDigest
from dlrm.formats.quantities import plural, size_text

LINE_WIDTH = 100
_CHECKED_BYTES = 4 * BLOCK_BYTES  # that a thread reads and checks at a time
_MOST_THREADS = 16


def newest(path: Path) -> Path:
    """The checkpoint at a path: the path itself, or the newest checkpoint in it.

    Raises:
        ValueError: There is no such directory.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: expected a checkpoint or a folder of checkpoints, found none")
    return (directory.finished(path) or [path])[-1]


def overview(path: Path) -> Iterator[str]:
    """Lines about a checkpoint, or one line about each checkpoint in a directory.

    Raises:
        ValueError: The checkpoint's manifest is damaged or missing.
    """
    checkpoints = directory.finished(path)
    if not checkpoints:
        yield from _describe(newest(path))
    for checkpoint in checkpoints:
        try:
            yield f"{checkpoint}: {_summary(checkpoint, read_manifest(checkpoint))}"
        except (ValueError, OSError) as error:
            yield str(error)


def _summary(checkpoint: Path, manifest: Manifest) -> str:
    """One line: the position, the size and whether all files are there."""
    position = manifest.position
    return (
        f"step {position.step:,}, epoch {position.epoch}, next sample {position.next_sample:,}; "
        f"{size_text(sum(digest.size for digest in manifest.files.values()))} of "
        f"{plural(manifest.ranks, 'rank')}; "
        f"{'; '.join(manifest.damage(checkpoint)) or 'every file there, of its size'}"
    )


def _describe(checkpoint: Path) -> Iterator[str]:
    """Lines about one checkpoint: its summary, model, tables, settings and data."""
    manifest = read_manifest(checkpoint)
    model = manifest.model
    yield f"{checkpoint}: {_summary(checkpoint, manifest)}"
    if DENSE_FILE not in manifest.files:
        yield "model: tables alone, no dense weights"
    elif model.num_dense is None:
        yield f"model: {model.architecture}, shaped by the settings"
    else:
        bottom, top = (
            "-".join(map(str, units or ())) for units in (model.bottom_mlp, model.top_mlp)
        )
        yield f"model: {model.num_dense} dense features, bottom MLP {bottom}, top MLP {top}"
    row_bytes = 4 * model.embedding_dim
    rows = sum(model.vocab_sizes)
    tables = f"tables: {len(model.vocab_sizes)} of width {model.embedding_dim}"
    if model.dynamic:
        yield f"{tables}, rows of the ids that occurred"
        each = [f"{table}: below {size:,}" for table, size in enumerate(model.vocab_sizes)]
    else:
        yield f"{tables}, {rows:,} rows, {size_text(rows * row_bytes)}"
        each = [
            f"{table}: {size:,} rows, {size_text(size * row_bytes)}"
            for table, size in enumerate(model.vocab_sizes)
        ]
    yield from _columns(each)
    for title, entries in (("settings", manifest.settings), ("data", manifest.data)):
        if entries:
            yield f"{title}:"
            text = [f"{name}={value}".replace(" ", "") for name, value in entries.items()]
            yield from textwrap.wrap(
                "  ".join(text),
                LINE_WIDTH,
                initial_indent="  ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )


def _columns(items: Sequence[str]) -> Iterator[str]:
    """Lines of equally wide items, each line as full as `LINE_WIDTH` allows."""
    width = max(map(len, items)) + 2
    count = max(1, (LINE_WIDTH - 2) // width)
    for first in range(0, len(items), count):
        line = "".join(item.ljust(width) for item in items[first : first + count])
        yield f"  {line}".rstrip()


def check_files(checkpoint: Path, on_message: Callable[[str], None]) -> bool:
    """Reads every byte of a checkpoint with all cores and reports one line for each file.

    Returns:
        Whether every file is undamaged.

    Raises:
        ValueError: The manifest is damaged or missing.
    """
    manifest = read_manifest(checkpoint)
    on_message(f"{checkpoint / FILE_NAME}: ok")
    start = time.perf_counter()
    damaged = 0
    for name, digest in manifest.files.items():
        problem = first_damage(checkpoint / name, digest)
        damaged += bool(problem)
        on_message(problem or f"{checkpoint / name}: ok")
    seconds = time.perf_counter() - start
    total = sum(digest.size for digest in manifest.files.values())
    found = f"{damaged} of {len(manifest.files)} files damaged" if damaged else "no damage"
    on_message(f"{found}; {size_text(total)} in {seconds:.2f} s, {total / seconds / 1e9:.2f} GB/s")
    return not damaged


def first_damage(path: Path, digest: FileDigest) -> str:
    """The first fault of a file, found by all cores; an empty string if it is undamaged."""

    def check(start: int) -> None:
        reader.read_bytes(start, min(start + _CHECKED_BYTES, digest.size))

    try:
        # Reading and checksums release the interpreter lock, so that the threads use all cores.
        with BlockReader(path, digest) as reader, ThreadPoolExecutor(_threads()) as pool:
            for _ in pool.map(check, range(0, digest.size, _CHECKED_BYTES)):
                pass
    except OSError as error:
        return f"{path}: {error.strerror}"
    except ValueError as error:
        return str(error)
    return ""


def _threads() -> int:
    """One thread for each core, but a bounded number.

    Each thread holds a piece in memory, and more of them than the bound only wait for the disk.
    """
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
