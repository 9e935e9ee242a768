"""A lock on a folder, so that no two runs write into it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_folder(folder: Path) -> int:
    """Locks a folder for this process until it ends or the returned descriptor is closed.

    Raises:
        ValueError: Another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{folder}: expected no other run to write here, found one; wait for it to end"
        ) from None
    return descriptor
