"""What each thread of a test did when: the times of its batches, and a trace to look at.

It must not know what a batch is.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files

_MICROSECONDS = 1e6  # the unit of traces


class _Span(NamedTuple):
    """Something that took a while.

    Attributes:
        name: What it was.
        batch: The number of the batch that it was done for.
        thread: The name of the thread that did it; None for a batch that waited.
        start: When it began, in seconds of `time.perf_counter`.
        end: When it ended.
    """

    name: str
    batch: int
    thread: str | None
    start: float
    end: float


class Timeline:
    """Spans of time, recorded by several threads.

    Args:
        recording: Whether anything is kept.
    """

    def __init__(self, recording: bool = True) -> None:
        self._recording = recording
        self._spans: list[_Span] = []
        self._of_thread = threading.local()

    @contextlib.contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """Says which batch this thread works for within the context."""
        self._of_thread.batch = number
        try:
            yield
        finally:
            self._of_thread.batch = None

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Records how long the context takes; within `batch` alone."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, threading.current_thread().name, start, time.perf_counter())

    def waited(self, name: str, start: float, end: float) -> None:
        """Records that this thread's batch waited; within `batch` alone."""
        self._add(name, None, start, end)

    def _add(self, name: str, thread: str | None, start: float, end: float) -> None:
        batch = getattr(self._of_thread, "batch", None)
        # What is done for no batch, such as the measurement of a rate, is not part of a test.
        if self._recording and batch is not None:
            self._spans.append(_Span(name, batch, thread, start, end))

    def seconds(self, *names: str) -> NDArray[np.float64]:
        """Returns the time that each batch spent in spans of these names.

        Returns:
            Seconds, float64 [batches with such a span], in the order of the batches.
        """
        totals: dict[int, float] = {}
        for span in self._spans:
            if span.name in names:
                totals[span.batch] = totals.get(span.batch, 0.0) + span.end - span.start
        return np.array([totals[batch] for batch in sorted(totals)], np.float64)

    def write_trace(self, path: Path) -> None:
        """Writes the spans in the JSON format of Chrome's traces, which Perfetto shows too.

        Each thread has a track of its own; waits overlap, so they are asynchronous events.
        """
        threads = sorted({span.thread for span in self._spans if span.thread is not None})
        tracks = {name: number for number, name in enumerate(threads, 1)}
        origin = min((span.start for span in self._spans), default=0.0)
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}
            for name, track in tracks.items()
        ]
        for number, span in enumerate(sorted(self._spans, key=lambda span: span.start)):
            start, end = ((t - origin) * _MICROSECONDS for t in (span.start, span.end))
            common = {"name": span.name, "pid": 1, "args": {"batch": span.batch}}
            if span.thread is None:
                wait = {**common, "cat": "wait", "id": number, "tid": 0}
                events += [{**wait, "ph": "b", "ts": start}, {**wait, "ph": "e", "ts": end}]
            else:
                track = tracks[span.thread]
                events.append({**common, "ph": "X", "tid": track, "ts": start, "dur": end - start})
        with atomic_files.whole_file(path) as unfinished, unfinished.open("w") as file:
            json.dump({"displayTimeUnit": "ms", "traceEvents": events}, file)
