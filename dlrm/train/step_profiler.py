"""Looks inside chosen steps: for profilers, and for the breakdown of a step's time.

A chosen step is taken in parts. For profilers, every second step of a range is, so that a profile
shows steps as they are and their parts beside them. For the breakdown, one step in `PERIOD` is, and
the steps before it are timed as they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Callable

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.reporting.step_breakdown import RankTimes, StepBreakdown
from dlrm.reporting.step_breakdown_files import FILE_NAMES, write
from dlrm.train.health import Health
from dlrm.train.instruments import DATA, STEP, Instruments, StepInputs, Train, nvtx_range
from dlrm.train.staged_step import ALL_REDUCE, GRADIENTS, KEYS, VECTORS, StagedStep
from dlrm.train.step import Routes, TrainingStep

STAGED_STEP, TIMELINE = "step in parts", "exchanges.json"
# Steps of which one is taken in parts. That costs less than 1 % while it takes less than 3.5 times
# as long as a step; benchmarks/README.md has what it takes.
PERIOD = 250
PLAIN = range(4, 10)  # which of a period are timed as they are
WARM_UP, STAGED = 10, 11  # which are taken in parts; the first one, in the first period, warms up


class Trace:
    """TensorFlow's profile of a range of steps, and the timeline of their exchanges.

    Args:
        folder: The folder of the profile; each rank writes one of its own into it.
        collective: The ranks.

    Attributes:
        outcome: What came of it, in a line for the user.
    """

    def __init__(self, folder: str, collective: Collective) -> None:
        self.outcome = "no step was profiled: the run ended before"
        self._folder = folder
        self._collective = collective
        self._running = self._profiling = False

    def start(self) -> None:
        """Begins to record. All ranks call it together."""
        rank = os.path.join(self._folder, f"rank{self._collective.rank}")
        try:
            os.makedirs(rank, exist_ok=True)
            tf.profiler.experimental.start(rank)
            self._profiling = True
        except (OSError, tf.errors.OpError) as error:
            self._fail(error)
        self._collective.start_timeline(os.path.join(self._folder, TIMELINE))
        self._running = True

    def mark(self, name: str, step: int | None = None) -> AbstractContextManager[object]:
        """Returns a context that the profile shows; one with a `step` counts as a step there."""
        if not self._profiling:
            return nullcontext()
        number = {} if step is None else {"step_num": step, "_r": 1}
        return tf.profiler.experimental.Trace(name, **number)

    def stop(self) -> None:
        """Writes the files, if it records."""
        if self._running:
            self._collective.stop_timeline()
        profiling, self._running, self._profiling = self._profiling, False, False
        if not profiling:
            return
        try:
            tf.profiler.experimental.stop()
            self.outcome = f"profile: {self._folder}; see it with `xprof --logdir={self._folder}`"
        except tf.errors.OpError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.outcome = f"warning: no profile in {self._folder}: {' '.join(str(error).split())}"


class StepProfiler(Instruments):
    """Takes chosen steps in parts. All ranks choose the same.

    Args:
        step: The step, built; its parts are compiled here.
        collective: The ranks.
        shown: The steps that profilers are to see, counted from the first of this run.
        trace: Records these steps; None leaves that to a profiler around the program.
        breakdown: Whether to time steps and parts.
        products_seconds: Measures how long the matrix products of a step take at the least.
        folder: Where the breakdown is written; None prints it only.
        note: A line for the user before the training.
    """

    def __init__(
        self,
        step: TrainingStep,
        collective: Collective,
        *,
        shown: range,
        trace: Trace | None,
        breakdown: bool,
        products_seconds: Callable[[], float],
        folder: str | None,
        note: str = "",
    ) -> None:
        self.note = note
        self._times = RankTimes()
        self._collective = collective
        self._products_seconds = products_seconds
        self._folder = folder
        self._traffic = step.traffic
        self._staged = StagedStep(step, self._part)
        self._shown = shown
        self._trace = trace
        self._breakdown = breakdown
        self._taken = 0
        self._data_seconds = 0.0
        self._parts: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `Instruments`; remembers how long the loop waited for data."""
        begin = time.perf_counter()
        with super().phase(name), self._mark(name):
            yield
        if name == DATA:
            self._data_seconds = time.perf_counter() - begin

    def take(self, number: int, train: Train, inputs: StepInputs) -> tuple[Health, Routes]:
        """See `Instruments`."""
        index, self._taken = self._taken, self._taken + 1
        shown = index in self._shown
        if self._trace and index == self._shown.start:
            self._trace.start()
        of_period = index % PERIOD if self._breakdown and not shown else None
        warms_up = of_period == WARM_UP and index == WARM_UP
        measured = of_period == STAGED
        staged = warms_up or measured or (shown and (index - self._shown.start) % 2 == 1)
        timed = staged or of_period in PLAIN
        train, name = (self._staged.train, STAGED_STEP) if staged else (train, STEP)

        self._parts = {DATA: self._data_seconds}
        if timed:
            tf.test.experimental.sync_devices()
        begin = time.perf_counter()
        with nvtx_range(name), self._mark(name, number):
            result = train(*inputs)
            if timed:
                tf.test.experimental.sync_devices()
        seconds = time.perf_counter() - begin

        if of_period in PLAIN:
            self._times.plain.append(self._data_seconds + seconds)
        elif measured:
            self._times.add(self._parts, self._sent(inputs.routes))
        if index == self._shown.stop - 1:
            self.stop()
        return result

    def stop(self) -> None:
        """See `Instruments`."""
        if self._trace:
            self._trace.stop()

    def report(self) -> list[str]:
        """See `Instruments`; also writes the breakdown's files."""
        lines = []
        if self._trace:
            lines.append(self._trace.outcome)
        if self._breakdown and not self._times.parts:
            lines.append(
                f"no step breakdown: of every {PERIOD} steps, it measures the one after step "
                f"{STAGED}, outside of --profile; this run took none"
            )
        elif self._breakdown:
            self._times.products = self._products_seconds()
            texts = self._collective.gather_text(self._times.to_text())
            breakdown = StepBreakdown([RankTimes.from_text(text) for text in texts])
            lines += ["", breakdown.table()]
            if self._folder and self._collective.rank == 0:
                lines += write_breakdown(self._folder, breakdown)
        return lines

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Marks and times a part of a step."""
        with nvtx_range(name), self._mark(name):
            begin = time.perf_counter()
            yield
            seconds = time.perf_counter() - begin
        self._parts[name] = self._parts.get(name, 0.0) + seconds

    def _mark(self, name: str, step: int | None = None) -> AbstractContextManager[object]:
        return self._trace.mark(name, step) if self._trace else nullcontext()

    def _sent(self, routes: Routes) -> dict[str, int]:
        """The bytes that each part sent in the step of these routes."""
        traffic = self._traffic(routes)
        return {
            KEYS: traffic.keys,
            VECTORS: traffic.vectors,
            ALL_REDUCE: traffic.dense,
            GRADIENTS: traffic.gradients,
        }


def write_breakdown(folder: str, breakdown: StepBreakdown) -> list[str]:
    """Writes the breakdown's files; returns a line for the user, also if that fails."""
    try:
        write(folder, breakdown)
    except OSError as error:
        return [f"warning: the step breakdown could not be written to {folder}: {error}"]
    return [f"in {folder}: {', '.join(FILE_NAMES)}"]
