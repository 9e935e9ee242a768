"""Output that appears whole or not at all, and gzip whose bytes depend on the content alone.

It knows nothing of what is written.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Union, cast

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.zip_strict import zip_strict

Buffer = Union[bytes, "memoryview[int]", NDArray[np.int32]]


class PendingFiles:
    """Binary files written under temporary names and renamed together.

    On a normal exit every file is flushed to disk and renamed in the order of `paths`; after an
    exception none is, and the temporary ones are removed.

    Args:
        paths: final names; those ending in `.gz` are compressed on the way.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._raw: list[BinaryIO] = []
        self._files: list[BinaryIO] = []

    def __enter__(self) -> list[BinaryIO]:
        """Opens every file for writing and reading back, in the order of `paths`."""
        try:
            for path in self._paths:
                raw = open(_temporary(path), "w+b", buffering=0)  # noqa: SIM115
                self._raw.append(raw)
                self._files.append(_compressed(raw) if path.suffix == ".gz" else raw)
        except OSError:
            self._discard()
            raise
        return self._files

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Renames the files, or removes them after an exception."""
        if kind is not None:
            self._discard()
            return
        try:
            for raw, file in zip_strict(self._raw, self._files):
                if file is not raw:
                    file.close()
                os.fsync(raw.fileno())
                raw.close()
            for path in self._paths:
                os.replace(_temporary(path), path)
        except OSError:
            self._discard()
            raise

    def _discard(self) -> None:
        for raw in self._raw:
            raw.close()
        for path in self._paths:
            _temporary(path).unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON under a temporary name and renames it."""
    with PendingFiles([path]) as [file]:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def write_all(file: BinaryIO, data: Buffer) -> None:
    """Writes every byte of a contiguous buffer; an unbuffered file may take it in pieces."""
    view = memoryview(data).cast("B")  # type: ignore[arg-type]
    while view:
        view = view[file.write(view) :]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _compressed(raw: BinaryIO) -> BinaryIO:
    # No name and no time stamp in the header: equal content must give equal bytes.
    return cast(
        BinaryIO, gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0)
    )
