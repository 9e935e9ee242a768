"""Files that are complete or absent, also after a crash: the only module that flushes and renames.

A file is written under a temporary name, brought to the disk and renamed; then its directory is
brought to the disk as well. What the bytes mean is the caller's concern.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from dlrm.formats.file_names import StrPath

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """The path under which a file is written before it gets its name."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


@contextlib.contextmanager
def whole_files(
    paths: Sequence[Path], before_renaming: Callable[[], None] | None = None
) -> Iterator[list[Path]]:
    """Yields the temporary paths under which to write several files that belong together.

    On a normal exit all of them are brought to the disk and then renamed, in the order of `paths`.
    After an exception none is. The temporary files are removed in either case.

    Args:
        paths: Final paths. Their directories must exist.
        before_renaming: Called when every file is on the disk and none has its name yet.

    Raises:
        OSError: A file cannot be flushed or renamed; the error names it.
    """
    temporaries = [temporary_path(path) for path in paths]
    for temporary in temporaries:
        temporary.unlink(missing_ok=True)  # Left by a run that was killed.
    try:
        yield temporaries
        for temporary in temporaries:
            sync_file(temporary)
        if before_renaming is not None:
            before_renaming()
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
        for directory in dict.fromkeys(path.parent for path in paths):
            sync_directory(directory)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: StrPath) -> Iterator[Path]:
    """Yields the temporary path under which to write one file; see `whole_files`."""
    with whole_files([Path(path)]) as [temporary]:
        yield temporary


def write_text(path: StrPath, text: str) -> None:
    """Writes a text file in UTF-8 that is complete, or as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: StrPath, content: bytes) -> None:
    """Writes a file that is complete, or as it was before."""
    with whole_file(path) as temporary, naming(temporary):
        temporary.write_bytes(content)


def rename(old: StrPath, new: StrPath) -> None:
    """Renames a file or directory, durably; an existing file or empty directory is replaced."""
    os.replace(old, new)
    sync_directory(Path(new).parent)


def sync(descriptor: int, path: StrPath) -> None:
    """Brings an open file to the disk.

    Args:
        descriptor: The open file.
        path: The file's name in an error message.
    """
    with naming(path):
        os.fsync(descriptor)


def sync_file(path: StrPath) -> None:
    """Brings a file that was written and closed to the disk."""
    _sync_path(path, os.O_RDONLY)


def sync_directory(path: StrPath) -> None:
    """Makes the names inside a directory, as they are now, survive a power cut.

    Does nothing on a file system that cannot do so, such as a CIFS mount.
    """
    try:
        _sync_path(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _sync_path(path: StrPath, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: StrPath) -> Iterator[None]:
    """Gives an `OSError` of the body the name of the file, which a bare read or write lacks."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise
