"""The file of MLPerf's training log: events that MLPerf's own package turns into lines.

Knows neither the order of the events nor training. A line is on its way to the disk when the call
that made it returns.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from dlrm.reporting.event_log import write_all

TOKEN = ":::MLLOG "  # begins each line, after whatever a launcher puts before it
CACHE_CLEAR = "cache_clear"
_ROOT = Path(__file__).resolve().parents[2]


class MlperfEvents:
    """Appends events to a log.

    Args:
        path: The file; created if missing. Its folder must exist.

    Raises:
        ValueError: MLPerf's package is missing; the message names the remedy.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        try:
            from mlperf_logging.mllog.mllog import MLLogger
        except ModuleNotFoundError:
            raise ValueError(
                "MLPerf's log: expected the package mlperf-logging, found none; run "
                "`make operate-setup`"
            ) from None
        self._lines = _Lines()
        logger = logging.Logger("mlperf")
        logger.addHandler(self._lines)
        # The lines name the caller of this class's methods, below the root.
        self._logger = MLLogger(logger, default_stack_offset=3, root_dir=re.escape(str(_ROOT)))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def start(self, key: str, time_ms: Optional[int] = None, /, **metadata: object) -> None:
        """Begins an interval, now or at a time in milliseconds since 1970."""
        self._write("start", key, None, metadata, time_ms)

    def stop(self, key: str, /, **metadata: object) -> None:
        """Ends an interval."""
        self._write("end", key, None, metadata)

    def event(self, key: str, value: object, /, **metadata: object) -> None:
        """Records a value."""
        self._write("event", key, value, metadata)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _write(
        self,
        kind: str,
        key: str,
        value: object,
        metadata: Mapping[str, object],
        time_ms: int | None = None,
    ) -> None:
        """Makes the lines of an event, and writes them."""
        getattr(self._logger, kind)(key, value, metadata=metadata, time_ms=time_ms)
        lines, self._lines.made = self._lines.made, []
        write_all(self._file, "".join(f"{line}\n" for line in lines).encode())


class _Lines(logging.Handler):
    """Keeps the lines that are made: logging's own handler would hide a full disk's error.

    Attributes:
        made: The lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.made.append(record.getMessage())


def read_events(path: str) -> list[dict[str, Any]]:
    """Reads the events of a log in their order; none if there is no such file.

    A line that a crash cut short is left out.

    Raises:
        OSError: The file cannot be read.
    """
    if not os.path.exists(path):
        return []
    events = []
    for line in Path(path).read_text(encoding="latin-1").splitlines():
        _, token, text = line.partition(TOKEN)
        if token:
            with contextlib.suppress(ValueError):
                events.append(json.loads(text))
    return events
