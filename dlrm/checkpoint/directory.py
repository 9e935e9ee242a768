"""The folder that holds a run's checkpoints: which are there, and how one appears or goes.

A checkpoint is made under a name that nobody reads and gets its own by one rename, so it is there
whole or not at all; it goes the same way back. Knows names and the file system, nothing of content.
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
LOCK_SECONDS = 15.0  # a killed run's last process may take so long to go
_NAME = re.compile(r"step-(\d{10,})")
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after `step` steps; names sort like steps."""
    return f"step-{step:010d}"


def step_of(path: Path) -> int:
    """The steps done before the checkpoint at `path`; -1 if it has another name than ours."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def is_later(path: Path, other: Path) -> bool:
    """Whether a checkpoint is of a later step than `other`, if the name of that tells."""
    return 0 <= step_of(other) < step_of(path)


def finished(directory: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none if there is no such folder."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is made."""
    return directory / (_UNFINISHED + checkpoint_name(step))


def clean(directory: Path) -> None:
    """Removes what interrupted writing or removing left."""
    if directory.is_dir():
        for path in directory.iterdir():
            if path.name.startswith((_UNFINISHED, _REMOVED)):
                shutil.rmtree(path)


def commit(unfinished: Path) -> Path:
    """Gives a checkpoint, of which every file is on the disk, its name.

    Takes the place of one of the same step, which can only be damaged: training has come this way
    again.
    """
    directory = unfinished.parent
    final = directory / unfinished.name[len(_UNFINISHED) :]
    atomic_files.sync_directory(unfinished)
    if final.exists():
        remove(final)
    atomic_files.rename(unfinished, final)
    return final


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint; interrupted, it leaves nothing that looks like one."""
    doomed = checkpoint.with_name(_REMOVED + checkpoint.name)
    atomic_files.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def lock(directory: Path) -> BinaryIO:
    """Keeps other runs out of a folder until the file is closed or the process ends.

    Raises:
        ValueError: another run holds it, also after `LOCK_SECONDS`.
    """
    file = open(directory / LOCK_NAME, "ab")  # noqa: SIM115
    end = time.monotonic() + LOCK_SECONDS
    # Where the file system has no locks, one goes without.
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
