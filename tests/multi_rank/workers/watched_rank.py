"""One rank under a watchdog, without TensorFlow: watched_rank.py PLAN.json RANK.

It takes steps, each of which ends in an exchange with the others, until its step `at`, in which
the ranks that `faults` names do something else. The ranks meet in the plan's folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

from dlrm.distributed.watchdog import Watchdog


class FolderCollective:
    """Exchanges text through files; waits forever for a rank that does not come."""

    def __init__(self, plan: dict[str, Any], rank: int) -> None:
        self.folder, self.rank, self.size = Path(plan["folder"]), rank, plan["size"]
        self.walled = rank in plan["walled"]
        self.exchanges = 0

    def gather_text(self, text: str) -> list[str]:
        self.exchanges += 1
        mine = self.folder / f"{self.exchanges}.{self.rank}"
        part = self.folder / f"{mine.name}.part"
        part.write_text(text)
        part.replace(mine)
        paths = [self.folder / f"{self.exchanges}.{rank}" for rank in range(self.size)]
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        texts = [path.read_text() for path in paths]
        if self.walled and self.exchanges == 1:  # a port that is closed to this rank
            texts[0] = json.dumps({**json.loads(texts[0]), "port": 1})
        return texts

    def together(self, action: Callable[[], Any]) -> None:
        problem = ""
        try:
            action()
        except ValueError as error:
            problem = str(error)
        problems = list(filter(None, self.gather_text(problem)))
        if problems:
            raise ValueError(problems[0])


def spin(watchdog: Watchdog) -> None:
    while True:
        pass


def wait_in_c(watchdog: Watchdog) -> None:
    """Locks a mutex twice: this thread is never again in Python, whatever signal comes."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def fail(watchdog: Watchdog) -> None:
    raise ValueError("a label of 2\nin the file")


def ask(watchdog: Watchdog) -> None:
    """What a main thread does whose exchange broke."""
    raise ValueError(watchdog.wait_for_failure(5) or "nothing is known")


def stop(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {function.__name__: function for function in (spin, wait_in_c, fail, ask, stop, die)}


def surroundings() -> tuple[Any, ...]:
    """What a watchdog must leave as it was."""
    files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    return len(files), handlers, threading.active_count()


def run(plan: dict[str, Any], rank: int) -> int:
    collective: Any = FolderCollective(plan, rank)
    fault = plan["faults"].get(str(rank))
    folder = Path(plan["folder"])

    def speak(line: str) -> None:
        (folder / f"words.{rank}").write_text(line)
        if plan["exit_hook"] == "hang":
            wait_in_c(watchdog)
        if plan["exit_hook"] == "fail":
            raise OSError("no space left")

    before = surroundings()
    watchdog = Watchdog(
        collective, plan["stall_timeout"], speak, catch_signals=plan["catch_signals"]
    )
    asked = False
    try:
        with watchdog:
            for step in range(plan["steps"]):
                (folder / f"step.{rank}").write_text(str(step))
                if fault and step == plan["at"]:
                    FAULTS[fault](watchdog)
                watchdog.report_progress(f"step {step}")
                time.sleep(plan["step_seconds"])
                asked = any(collective.gather_text(watchdog.signal))
                if asked:
                    break
            if fault and plan["at"] == plan["steps"]:
                FAULTS[fault](watchdog)
    finally:
        assert surroundings() == before
    return 75 if asked else 0


if __name__ == "__main__":
    try:
        code = run(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
    except ValueError as error:
        print("error:", *str(error).split(), file=sys.stderr, flush=True)
        code = 1
    sys.exit(code)
