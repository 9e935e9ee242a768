"""Starts a training over several ranks, and starts it again from its last checkpoint if it fails.

    python3 -m launch -np 8 -- main.py --data_dir=DATA --checkpoint_dir=CHECKPOINTS ...

For those without a scheduler that does so. Options before `--` that are not its own are
horovodrun's (such as -H host1:4,host2:4). A SIGTERM or Ctrl-C has the job write a checkpoint and
end with code 75; a second one ends it at once. Knows of the training what its user sees: exit
codes, lines that begin with `error: `, names of finished checkpoints.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Optional

import psutil

WRAPPER = Path(__file__).resolve().parent.parent / "hvd_wrapper.sh"
MAX_RESTARTS = 3
LONGEST_PAUSE = 60.0  # seconds
LEFT_SECONDS = 10.0  # horovodrun's helpers end what they started within this time after its death
MOST_ERRORS = 20  # of an attempt, remembered
PREEMPTED = os.EX_TEMPFAIL  # 75: a signal stopped the training after it wrote a checkpoint
KILLED = 128  # plus the signal's number: the exit code of what a signal ends
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LIBRARY = ctypes.CDLL(None)

RANK_PREFIX = re.compile(r"^\[\d+\]<std(?:out|err)>:")
RANK_ENDED = re.compile(r"Process \d+ exit with status code (\d+)\.")


class Attempt(NamedTuple):
    """One start of the job, and how it ended.

    Attributes:
        code: exit code of the first rank that failed; 0 if none did.
        seconds: from start to end.
        errors: its distinct lines that begin with `error: `.
        progress: whether a checkpoint was finished meanwhile.
    """

    code: int
    seconds: float
    errors: tuple[str, ...]
    progress: bool

    def repeats(self, other: Attempt) -> bool:
        """Whether it came to the same end, without having got any further."""
        return not self.progress and bool(self.errors) and set(self.errors) == set(other.errors)


class Output:
    """Passes on what a job writes, and notes what it says of its end."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.code: Optional[int] = None

    def follow(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Copies until the end of `source`, each piece as it comes."""
        line = b""
        while piece := os.read(source.fileno(), 1 << 16):
            try:
                target.write(piece)
                target.flush()
            except OSError:  # nobody reads it: the job must not wait for that
                target = open(os.devnull, "wb")  # noqa: SIM115 - to the end of the process
            *lines, line = re.split(rb"[\r\n]", line + piece)
            for complete in lines:
                self._note(complete.decode(errors="replace"))
        self._note(line.decode(errors="replace"))

    def _note(self, line: str) -> None:
        text, of_rank = RANK_PREFIX.subn("", line)
        if text.startswith("error: ") and text not in self.errors:
            self.errors = [*self.errors, text][:MOST_ERRORS]
        ended = RANK_ENDED.search(text)
        if ended and not of_rank and self.code is None:
            self.code = int(ended.group(1))


class Supervisor:
    """Runs a job until it is done, a signal ends it, or there is no sense in another attempt.

    Args:
        job: the command.
        restart: the command once there is a checkpoint of this job.
        max_restarts: attempts beside the first.
        checkpoints: the folder of its checkpoints, if it has one.
    """

    def __init__(
        self,
        job: Sequence[str],
        restart: Sequence[str],
        max_restarts: int,
        checkpoints: Optional[Path],
    ) -> None:
        self._job, self._restart = job, restart
        self._max_restarts = max_restarts
        self._checkpoints = checkpoints
        self._signals: list[int] = []
        self._woken = threading.Event()

    def run(self) -> int:
        """Returns the exit code, 0 or that of the last attempt."""
        # Whatever of a job outlives its parents becomes our child, and is found.
        LIBRARY.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)
        attempts: list[Attempt] = []
        while True:
            command = self._restart if any(a.progress for a in attempts) else self._job
            attempts.append(self._attempt(command))
            code = attempts[-1].code
            if len(self._signals) > 1:
                return KILLED + self._signals[1]
            if self._signals:
                return code
            if code == 0:
                return 0
            if reason := self._reason_to_give_up(attempts):
                give_up(attempts, reason)
                return code
            # One rank alone was preempted: nothing is wrong.
            pause = 0.0 if code == PREEMPTED else min(2.0 ** (len(attempts) - 1), LONGEST_PAUSE)
            say(
                f"attempt {len(attempts)} ended with code {code} after "
                f"{attempts[-1].seconds:.0f} s; starting again in {pause:g} s"
            )
            self._woken.wait(pause)
            if self._signals:
                return KILLED + self._signals[0]

    def _reason_to_give_up(self, attempts: Sequence[Attempt]) -> str:
        if not self._max_restarts:
            return "no restart is allowed"
        if len(attempts) > self._max_restarts:
            return f"--max_restarts={self._max_restarts} are done"
        if len(attempts) > 1 and attempts[-1].repeats(attempts[-2]):
            return "two attempts ended with the same errors and no new checkpoint between them"
        return ""

    def _hear(self, number: int, frame: object) -> None:
        self._signals.append(number)
        self._woken.set()

    def _attempt(self, command: Sequence[str]) -> Attempt:
        """Runs the job once; nothing of it is left after that."""
        start, before = time.monotonic(), finished(self._checkpoints)
        output = Output()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C must not reach horovodrun, which gives ranks 5 s to live.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        followers = [
            threading.Thread(target=output.follow, args=streams)
            for streams in (
                (process.stdout, sys.stdout.buffer),
                (process.stderr, sys.stderr.buffer),
            )
        ]
        for follower in followers:
            follower.start()
        self._wait(process)
        sweep()
        for follower in followers:
            follower.join()
        process.stdout.close()
        process.stderr.close()
        code = process.returncode
        if code:  # horovodrun's own is 1 for any failure
            code = output.code or (code if code > 0 else KILLED - code)
        progress = bool(finished(self._checkpoints) - before)
        return Attempt(code, time.monotonic() - start, tuple(output.errors), progress)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the job's end; passes on the first signal, and ends all at the second."""
        passed_on = 0
        while process.poll() is None:
            if len(self._signals) > passed_on:
                passed_on = len(self._signals)
                name = signal.Signals(self._signals[-1]).name
                if passed_on == 1:
                    say(f"{name}: the job writes a checkpoint and ends; a second ends it at once")
                    stop_one_rank(process)
                else:
                    say(f"{name}: a second signal; ending the job at once")
                    kill_all()
            self._woken.clear()
            if len(self._signals) == passed_on:
                self._woken.wait(0.1)


def stop_one_rank(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM to one rank of this machine, which tells the others; without one, to all."""
    for rank in ranks_below(process.pid):
        try:
            rank.terminate()
            return
        except psutil.NoSuchProcess:
            continue
    say("no rank runs on this machine; ending the job")
    process.terminate()


def ranks_below(pid: int) -> Iterator[psutil.Process]:
    """The ranks among a process's descendants, not the shells above or what they started."""
    environments: dict[int, dict[str, str]] = {}
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in descendants:
        try:
            environments[process.pid] = process.environ()
            parent = process.ppid()
        except psutil.Error:
            continue
        if "HOROVOD_RANK" in environments[process.pid] and "HOROVOD_RANK" not in environments.get(
            parent, {}
        ):
            yield process


def kill_all() -> None:
    """Ends every descendant at once."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def sweep() -> None:
    """Waits for what a job has left behind, then ends it: two jobs must never run side by side."""
    end = time.monotonic() + LEFT_SECONDS
    while left := psutil.Process().children(recursive=True):
        if time.monotonic() > end + LEFT_SECONDS:
            say(f"cannot end {', '.join(str(process.pid) for process in left)}")
            return
        if time.monotonic() > end:
            kill_all()
        psutil.wait_procs(left, timeout=0.1)


def end_with_parent() -> None:
    """Has horovodrun, and so its job, end if this process is killed. Runs in the child."""
    LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def finished(folder: Optional[Path]) -> set[str]:
    """Names of the finished checkpoints."""
    return {path.name for path in folder.glob("step-*")} if folder else set()


def say(text: str) -> None:
    """Writes a line of our own."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def give_up(attempts: Sequence[Attempt], reason: str) -> None:
    """Lists what each attempt ended with."""
    say(f"giving up after {len(attempts)} attempt{'s' * (len(attempts) > 1)}: {reason}")
    for number, attempt in enumerate(attempts, 1):
        say(f"attempt {number}: exit code {attempt.code} after {attempt.seconds:.1f} s")
        for error in attempt.errors or ("no error line",):
            say(f"  {error}")


def flag(arguments: Sequence[str], name: str) -> Optional[str]:
    """The value of main.py's flag, also from its flag files; the last one counts.

    Raises:
        OSError, ValueError: a flag file cannot be read.
    """
    value = None
    words = iter(arguments)
    for word in words:
        key, equals, given = word.lstrip("-").partition("=")
        if not word.startswith("-") or key not in (name, "flagfile"):
            continue
        given = given if equals else next(words, "")
        if key == "flagfile":
            inner = flag([line.strip() for line in Path(given).read_text().splitlines()], name)
            value = value if inner is None else inner
        else:
            value = given
    return value


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Our own options, horovodrun's, and the command after `--`."""
    parser = argparse.ArgumentParser(
        prog="python3 -m launch",
        usage="%(prog)s -np N [--max_restarts K] [horovodrun's options] -- main.py --flags...",
        description="Runs a training over N ranks; restarts it from its last checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument("-np", type=int, required=True, help="ranks")
    parser.add_argument(
        "--max_restarts",
        type=int,
        help=f"how often to start again (default: {MAX_RESTARTS}; 0 without --checkpoint_dir)",
    )
    at = argv.index("--") if "--" in argv else len(argv)
    options, others = parser.parse_known_args(argv[:at])
    command = list(argv[at + 1 :])
    if not command:
        parser.error("expected -- and main.py with its flags, found none")
    return options, others, command


def main(argv: Sequence[str]) -> int:
    """Runs the job; returns the exit code."""
    options, others, command = parse(argv)
    try:
        folder = flag(command[1:], "checkpoint_dir")
        resume = flag(command[1:], "resume")
    except (OSError, ValueError) as error:
        say(f"error: --flagfile: {error}")
        return 1
    restarts = options.max_restarts
    if restarts is None:
        restarts = MAX_RESTARTS if folder else 0
    if restarts and not folder:
        say(
            f"error: expected --checkpoint_dir among the flags, found none: with --max_restarts="
            f"{restarts} a restart would begin anew; name a folder or set --max_restarts=0"
        )
        return 1
    runner = shutil.which("horovodrun")
    if runner is None:
        say("error: no horovodrun on PATH; run `make setup` and put its environment's bin there")
        return 1
    start = [runner, "--gloo", "-np", str(options.np), *others, str(WRAPPER), sys.executable]
    job = [*start, *command]
    # What it was first to begin with, it has left behind by then.
    restart = job if resume is None else [*job, "--resume=auto"]
    return Supervisor(job, restart, restarts, Path(folder) if folder else None).run()
