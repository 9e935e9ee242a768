"""One rank under watch, without TensorFlow: python3 watched.py PLAN.json RANK.

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

from watch import Watch


class FolderCollective:
    """Exchanges text through files; waits for ever for a rank that does not come."""

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size
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
        return [path.read_text() for path in paths]

    def together(self, action: Callable[[], Any]) -> None:
        problem = ""
        try:
            action()
        except ValueError as error:
            problem = str(error)
        problems = list(filter(None, self.gather_text(problem)))
        if problems:
            raise ValueError(problems[0])


def spin() -> None:
    while True:
        pass


def wait_in_c() -> None:
    """Locks a mutex twice: this thread is never again in Python, whatever signal comes."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def fail() -> None:
    raise ValueError("a label of 2\nin the file")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[], None]] = {
    "spin": spin,
    "wait": wait_in_c,
    "fail": fail,
    "stop": stop,
    "die": die,
    "leave": lambda: None,
}


def open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    return sorted(os.readlink(entry) for entry in folder.iterdir() if entry.exists())


def run(plan: dict[str, Any], rank: int) -> int:
    collective: Any = FolderCollective(Path(plan["folder"]), rank, plan["size"])
    fault = plan["faults"].get(str(rank), "")
    last_words = Path(plan["folder"]) / f"words.{rank}"

    def say(line: str) -> None:
        last_words.write_text(line)
        if plan.get("last_words") == "hang":
            wait_in_c()
        if plan.get("last_words") == "fail":
            raise OSError("no space")

    before = open_files(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Watch(
        collective, plan["stall_timeout"], last_words=say, catch_signals=plan["catch_signals"]
    ) as watch:
        for step in range(plan["steps"]):
            if fault and step == plan["at"]:
                FAULTS[fault]()
                if fault == "leave":
                    break
            watch.moved(f"step {step}")
            (Path(plan["folder"]) / f"step.{rank}").write_text(str(step))
            if any(collective.gather_text(watch.signal)):
                break
    after = open_files(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert before == after, (before, after)
    assert threading.active_count() == 1
    return 75 if watch.signal else 0


if __name__ == "__main__":
    try:
        code = run(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code)
