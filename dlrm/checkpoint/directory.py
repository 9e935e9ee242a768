"""The directory that holds a run's checkpoints: lists, commits and removes them.

A checkpoint is written under a temporary name and gets its final name by one rename, so it is
complete or absent. Removal begins with a rename too. This module deals with names and the file
system; what is in a checkpoint is no concern of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from dlrm.formats import atomic_files

LOCK_NAME = ".lock"
LOCK_SECONDS = 15.0  # The last process of a killed run may need this long to end.
_NAME = re.compile(r"step-(\d{10,})")
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after `step` steps; names sort like steps."""
    return f"step-{step:010d}"


def step_of(path: Path) -> int:
    """The number of steps before the checkpoint at `path`; -1 if the name is no checkpoint's."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def is_later(path: Path, other: Path) -> bool:
    """Whether a checkpoint is of a later step than `other`; False if `other` has no step number."""
    return 0 <= step_of(other) < step_of(path)


def finished(directory: Path) -> list[Path]:
    """The finished checkpoints in a directory, oldest first; none if it does not exist."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def unfinished_path(directory: Path, step: int) -> Path:
    """The path under which the checkpoint after `step` steps is written."""
    return directory / (_UNFINISHED + checkpoint_name(step))


def clean(directory: Path) -> None:
    """Removes what an interrupted save or removal left."""
    if directory.is_dir():
        for path in directory.iterdir():
            if path.name.startswith((_UNFINISHED, _REMOVED)):
                shutil.rmtree(path)


def commit(unfinished: Path) -> Path:
    """Gives a checkpoint its final name; its files must be on the disk.

    It replaces a checkpoint of the same step, which can only be damaged: training has passed this
    step again.
    """
    directory = unfinished.parent
    final = directory / unfinished.name[len(_UNFINISHED) :]
    atomic_files.sync_directory(unfinished)
    if final.exists():
        remove(final)
    atomic_files.rename(unfinished, final)
    return final


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint.

    It is renamed first, so that an interrupted removal leaves no directory that looks like one.
    """
    doomed = checkpoint.with_name(_REMOVED + checkpoint.name)
    atomic_files.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def lock(directory: Path) -> BinaryIO:
    """Keeps other runs out of a directory until the file is closed or the process ends.

    Raises:
        ValueError: Another run still holds the lock after `LOCK_SECONDS`.
    """
    file = open(directory / LOCK_NAME, "ab")  # noqa: SIM115
    end = time.monotonic() + LOCK_SECONDS
    # Some file systems have no locks; the run then goes without.
    with contextlib.suppress(OSError):
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    file.close()
                    raise ValueError(
                        f"{directory}: another run is writing its checkpoints here; wait for its "
                        "end, or set another --checkpoint_dir"
                    ) from None
                time.sleep(0.1)
            else:
                break
    return file
