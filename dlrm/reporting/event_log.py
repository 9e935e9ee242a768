"""The event log of a run: JSON lines in an append-only file.

Writes are unbuffered, so a crash leaves a file that is complete up to the last event, and a full
disk is reported by the write that met it. Independent of training: an event is a name and some
values.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any, cast


def jsonable(value: object) -> object:
    """Turns a value into what strict JSON can hold.

    Args:
        value: Any value; mappings and sequences are converted item by item.

    Returns:
        The value itself where JSON can hold it, `None` for a float that is not finite, a
        plain number for a NumPy scalar, and the text of anything else.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        return jsonable(cast(Any, value).item())
    return str(value)


class LineFile:
    """Appends lines to a file.

    A line that an earlier crash left unfinished is ended first, so that it spoils only itself.

    Args:
        path: The file; created if missing. Its folder must exist.

    Raises:
        OSError: The file cannot be opened, read or written.
    """

    def __init__(self, path: str) -> None:
        # With read access: the last byte says whether an earlier line was cut short.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if self._file.seek(0, os.SEEK_END) > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                write_all(self._file, b"\n")

    def append(self, line: str) -> None:
        """Appends a line, given without its end.

        Raises:
            OSError: The line could not be written whole.
        """
        write_all(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()


class EventLog(LineFile):
    """Appends events to a file, one JSON object per line."""

    def write(self, event: str, step: int, fields: Mapping[str, object]) -> None:
        """Appends one event.

        Args:
            event: The kind of event, such as "step".
            step: Number of steps done.
            fields: Further keys of the line.

        Raises:
            OSError: The line could not be written whole.
        """
        line = {"event": event, "time": time.time(), "step": step, **fields}
        self.append(json.dumps(jsonable(line), allow_nan=False))


def write_all(file: Any, data: bytes) -> None:
    """Writes all of the data, or raises: an unbuffered write may be short on a full disk.

    Args:
        file: A file opened without a buffer.
        data: What to write.

    Raises:
        OSError: Not all of it could be written.
    """
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
