"""Log files that are compressed on the way, and writes that are complete.

Which files exist and what they hold is for the callers.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Union, cast

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from dlrm.formats.zip_strict import zip_strict

Buffer = Union[bytes, "memoryview[int]", NDArray[np.int32]]


@contextlib.contextmanager
def pending_files(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Opens files for writing that all appear under their names together, or not at all.

    Args:
        paths: The final paths. Files whose path ends in `.gz` are compressed; their bytes depend
            on the content alone.
    """
    with atomic_files.whole_files(paths) as temporaries, contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []
        for path, temporary in zip_strict(paths, temporaries):
            file: BinaryIO = stack.enter_context(open(temporary, "wb", buffering=0))
            if path.suffix == ".gz":
                file = stack.enter_context(_compressed(file))
            files.append(file)
        yield files


def write_all(file: BinaryIO, data: Buffer) -> None:
    """Writes every byte of a contiguous buffer, as an unbuffered file may take only a part."""
    view = memoryview(data)  # type: ignore[arg-type]
    view = view.cast("B") if view.nbytes else memoryview(b"")
    while view:
        view = view[file.write(view) :]


def _compressed(raw: BinaryIO) -> BinaryIO:
    """Returns a file that compresses into `raw`."""
    # No name and no time stamp in the header: equal content must give equal bytes.
    return cast(
        BinaryIO, gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0)
    )
