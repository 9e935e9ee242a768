"""Runs a job, and runs it again from its last checkpoint if it fails.

Relies only on what a user of the training sees: exit codes, error lines and names of checkpoints.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm.checkpoint.directory import finished
from dlrm.formats.quantities import plural
from launch.output import JobOutput
from launch.processes import (
    adopt_orphans,
    end_leftovers,
    end_with_parent,
    kill_job,
    log,
    ranks_below,
    stop_one_rank,
)

MAX_PAUSE = 60.0  # seconds
# After a rank's error, for the runner to end: Open MPI's waits for a host that is out of reach.
ENDING_SECONDS = 30.0
LOOK_SECONDS = 1.0  # between two searches for ranks
RESTARTS = "DLRM_RESTARTS"  # tells the ranks how often the job was started again
PREEMPTED = os.EX_TEMPFAIL  # 75: a signal stopped the training after it wrote a checkpoint
KILLED = 128  # plus the signal's number: the exit code of a process that a signal ends


class Attempt(NamedTuple):
    """One run of the job, and how it ended.

    Attributes:
        code: Exit code of the first rank that failed; 0 if none did.
        seconds: Time from start to end.
        errors: The job's distinct lines that begin with `error: `.
        progress: Whether a checkpoint was finished meanwhile.
    """

    code: int
    seconds: float
    errors: tuple[str, ...]
    progress: bool

    def repeats(self, other: Attempt) -> bool:
        """Returns whether it ended with the other's errors and made no progress."""
        return not self.progress and bool(self.errors) and set(self.errors) == set(other.errors)


class Supervisor:
    """Runs a job until it is done, a signal ends it, or another attempt would be pointless.

    Args:
        job: The command.
        restart: The command to use once there is a checkpoint of this job.
        max_restarts: The number of attempts allowed after the first.
        checkpoints: The folder of the job's checkpoints, if it has one.
    """

    def __init__(
        self,
        job: Sequence[str],
        restart: Sequence[str],
        max_restarts: int,
        checkpoints: Path | None,
    ) -> None:
        self._job, self._restart = job, restart
        self._max_restarts = max_restarts
        self._checkpoints = checkpoints
        self._signals: list[int] = []
        self._signalled = threading.Event()

    def run(self) -> int:
        """Returns the exit code: 0, or that of the last attempt."""
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        attempts: list[Attempt] = []
        while True:
            has_checkpoint = any(attempt.progress for attempt in attempts)
            command = self._restart if has_checkpoint else self._job
            attempts.append(self._attempt(command, restarts=len(attempts)))
            code = attempts[-1].code
            if len(self._signals) > 1:
                return KILLED + self._signals[1]
            if self._signals or code == 0:
                return code
            if reason := self._reason_to_give_up(attempts):
                log_attempts(attempts, reason)
                return code
            # A preempted rank is no fault: nothing needs time to recover.
            pause = 0.0 if code == PREEMPTED else min(2.0 ** (len(attempts) - 1), MAX_PAUSE)
            log(
                f"attempt {len(attempts)} ended with code {code} after "
                f"{attempts[-1].seconds:.0f} s; starting again in {pause:g} s"
            )
            self._signalled.wait(pause)
            if self._signals:
                return KILLED + self._signals[0]

    def _reason_to_give_up(self, attempts: Sequence[Attempt]) -> str:
        if not self._max_restarts:
            return "no restart is allowed"
        if len(attempts) > self._max_restarts:
            return f"--max_restarts={self._max_restarts} is used up"
        if len(attempts) > 1 and attempts[-1].repeats(attempts[-2]):
            return "two attempts ended with the same errors and no new checkpoint between them"
        return ""

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        self._signalled.set()

    def _attempt(self, command: Sequence[str], restarts: int) -> Attempt:
        """Runs the job once; no process of it is left afterwards."""
        # A scheduler may have started this launcher again, too.
        earlier = os.environ.get(RESTARTS, "")
        restarts += int(earlier) if earlier.isdecimal() else 0
        start, before = time.monotonic(), self._finished_checkpoints()
        output = JobOutput()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", RESTARTS: str(restarts)},
            # Ctrl-C must not reach horovodrun, which gives ranks 5 s to live.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        streams = (process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)
        forwarders = [threading.Thread(target=output.forward, args=pair) for pair in streams]
        for forwarder in forwarders:
            forwarder.start()
        self._wait(process, output)
        end_leftovers()
        for forwarder in forwarders:
            forwarder.join()
        process.stdout.close()
        process.stderr.close()
        code = process.returncode
        if code:  # horovodrun's own code is 1 for any failure
            code = output.code or (code if code > 0 else KILLED - code)
        progress = bool(self._finished_checkpoints() - before)
        return Attempt(code, time.monotonic() - start, tuple(output.errors), progress)

    def _wait(self, process: subprocess.Popen[bytes], output: JobOutput) -> None:
        """Waits for the job's end; forwards the first signal, and kills the job at the second."""
        handled = 0
        next_look, end = 0.0, math.inf
        while process.poll() is None:
            if output.errors and (now := time.monotonic()) >= next_look:
                next_look = now + LOOK_SECONDS
                ended = next(ranks_below(process.pid), None) is None
                end = min(end, now + ENDING_SECONDS) if ended else math.inf
                if now >= end:
                    log(
                        "the ranks on this machine have ended after an error, but not the job, as "
                        "if another machine were out of reach; killing it"
                    )
                    kill_job()
            if len(self._signals) > handled:
                handled = len(self._signals)
                name = signal.Signals(self._signals[-1]).name
                if handled == 1:
                    log(f"{name}: the job writes a checkpoint and ends; a second signal kills it")
                    stop_one_rank(process.pid)
                else:
                    log(f"{name}: a second signal; killing the job")
                    kill_job()
            self._signalled.clear()
            if len(self._signals) == handled:
                self._signalled.wait(0.1)

    def _finished_checkpoints(self) -> set[str]:
        return {path.name for path in finished(self._checkpoints)} if self._checkpoints else set()


def log_attempts(attempts: Sequence[Attempt], reason: str) -> None:
    """Lists how each attempt ended, and why there will be no other."""
    log(f"giving up after {plural(len(attempts), 'attempt')}: {reason}")
    for number, attempt in enumerate(attempts, 1):
        log(f"attempt {number}: exit code {attempt.code} after {attempt.seconds:.1f} s")
        for error in attempt.errors or ("no error line",):
            log(f"  {error}")
