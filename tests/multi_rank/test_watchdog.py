"""Ranks that die, hang, fail or are asked to stop, as real processes, and what the others do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from dlrm.distributed.watchdog.heartbeats import Heartbeat, HeartbeatTable, SuspendAwareClock
from tests.support.processes import ROOT

# Bash and processes without TensorFlow: the same in both profiles.
pytestmark = pytest.mark.one_profile
SOON = 5.0  # seconds; a start of Python on two busy cores is the longest part
STALL = 2.0
NEVER = 60.0
AT = 3


class Ranks:
    """Ranks of workers/watched_rank.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, size: int, faults: Optional[dict[int, str]] = None, **plan: Any) -> None:
        """Starts them all; see the worker for the plan."""
        defaults = {
            "folder": os.fspath(self.folder),
            "size": size,
            "faults": faults or {},
            "at": AT,
            "steps": 2 * AT,
            "step_seconds": 0.02,
            "stall_timeout": NEVER,
            "catch_signals": True,
            "exit_hook": "",
            "walled": [],
        }
        assert plan.keys() <= defaults.keys()
        path = self.folder / "plan.json"
        path.write_text(json.dumps({**defaults, **plan}))
        for rank in range(size):
            with open(self.folder / f"err.{rank}", "wb") as errors:
                worker = [sys.executable, "-m", "tests.multi_rank.workers.watched_rank"]
                command = [*worker, os.fspath(path), str(rank)]
                self.processes.append(subprocess.Popen(command, stderr=errors, cwd=ROOT))

    def kill(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def reach(self, step: int) -> None:
        """Waits until every rank has come to a step."""
        paths = [self.folder / f"step.{rank}" for rank in range(len(self.processes))]
        end = time.monotonic() + 30
        while not all(path.exists() and int(path.read_text() or 0) >= step for path in paths):
            assert time.monotonic() < end, [self.lines(rank) for rank in range(len(paths))]
            time.sleep(0.01)

    def code(self, rank: int, within: float = 30.0) -> int:
        return self.processes[rank].wait(within)

    def lines(self, rank: int) -> list[str]:
        """What it wrote to standard error; a blank line ends what a library may have begun."""
        text = (self.folder / f"err.{rank}").read_text()
        return [line for line in text.splitlines() if line]

    def words(self, rank: int) -> str:
        return (self.folder / f"words.{rank}").read_text()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    started = Ranks(tmp_path)
    yield started
    started.end()


def assert_each_says(ranks: Ranks, those: Sequence[int], pattern: str, within: float) -> None:
    """Each of those ranks ends with code 1, one line, and an exit hook that is told the same."""
    start = time.monotonic()
    for rank in those:
        code = ranks.code(rank, within)
        (line,) = ranks.lines(rank)
        assert re.fullmatch(f"error: {pattern}", line), line
        assert code == 1
        assert f"error: {ranks.words(rank)}" == line
    print(f"{time.monotonic() - start:.2f} s")


@pytest.mark.parametrize(("size", "lost"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_killed(size: int, lost: int, ranks: Ranks) -> None:
    """The others never return from C, and name the lost rank at once."""
    others = [rank for rank in range(size) if rank != lost]
    ranks.start(size, {lost: "die", **dict.fromkeys(others, "wait_in_c")})
    assert ranks.code(lost) == -signal.SIGKILL
    pattern = f"rank {lost} is lost: its process ended .*; the other ranks stop; start the same .*"
    assert_each_says(ranks, others, pattern, SOON)


@pytest.mark.parametrize("stopped", [0, 1])
def test_stopped(stopped: int, ranks: Ranks) -> None:
    others = [rank for rank in range(3) if rank != stopped]
    ranks.start(3, {stopped: "stop"}, stall_timeout=STALL)
    ranks.reach(AT)
    pattern = f'rank {stopped} has sent no heartbeat for 2 s \\(last reported activity: ".*"\\); .*'
    assert_each_says(ranks, others, pattern, STALL + SOON)


@pytest.mark.parametrize("looping", [0, 1])
def test_endless_loop(looping: int, ranks: Ranks) -> None:
    ranks.start(2, {looping: "spin"}, stall_timeout=STALL)
    ranks.reach(AT)
    pattern = (
        f"no rank has made progress for 2 s; rank {looping} is behind: "
        f'rank {looping} is at "step 2" \\(watched_rank.py:\\d+ in spin\\), '
        f'rank {1 - looping} is at "step 3" \\(watched_rank.py:\\d+ in gather_text\\); .*'
    )
    assert_each_says(ranks, [0, 1], pattern, STALL + SOON)


@pytest.mark.parametrize("size", [1, 2])
def test_all_hang(size: int, ranks: Ranks) -> None:
    those = range(size)
    ranks.start(size, dict.fromkeys(those, "wait_in_c"), stall_timeout=STALL)
    ranks.reach(AT)
    who = "rank 0 is" if size == 1 else "ranks 0, 1 are"
    pattern = (
        f'no rank has made progress for 2 s; none is behind: {who} at "step 2" .* in wait_in_c.*'
    )
    assert_each_says(ranks, those, pattern, STALL + SOON)


@pytest.mark.parametrize("late", [0, 1])
def test_hangs_when_the_other_is_done(late: int, ranks: Ranks) -> None:
    """The hub stays to see it; whom it has let go is gone."""
    ranks.start(2, {late: "wait_in_c"}, at=2, steps=2, stall_timeout=STALL)
    pattern = f'no rank has made progress for 2 s; none is behind: rank {late} is at "step 1" .*'
    assert_each_says(ranks, [0, late] if late else [0], pattern, 30)
    assert ranks.code(1) == late


def test_dies_when_the_hub_is_done(ranks: Ranks) -> None:
    ranks.start(2, {1: "die"}, at=2, steps=2)
    assert_each_says(ranks, [0], "rank 1 is lost: .*", 30)


@pytest.mark.parametrize("failing", [0, 1])
def test_failed_in_good_order(failing: int, ranks: Ranks) -> None:
    """The others wait for it in C; it says why in its own words."""
    others = [rank for rank in range(3) if rank != failing]
    ranks.start(3, {failing: "fail", **dict.fromkeys(others, "wait_in_c")})
    assert ranks.code(failing) == 1
    assert ranks.lines(failing) == ["error: a label of 2 in the file"]
    assert_each_says(ranks, others, f"rank {failing} stopped: a label of 2 in the file", SOON)


def test_all_fail_together(ranks: Ranks) -> None:
    """Each in its own words, the watchdog adds none."""
    ranks.start(3, dict.fromkeys(range(3), "fail"))
    for rank in range(3):
        assert ranks.code(rank) == 1
        assert ranks.lines(rank) == ["error: a label of 2 in the file"]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_main_thread_raises_a_failure(failing: int, ranks: Ranks) -> None:
    """The main thread raises what the watchdog knows, and is the only one to say it."""
    ranks.start(2, {failing: "fail", 1 - failing: "ask"})
    assert ranks.code(1 - failing) == 1
    expected = f"error: rank {failing} stopped: a label of 2 in the file"
    assert ranks.lines(1 - failing) == [expected]
    assert not (ranks.folder / f"words.{1 - failing}").exists()


def test_the_watchdog_reports_a_loss(ranks: Ranks) -> None:
    """The watchdog says it, and the main thread not again."""
    ranks.start(2, {0: "die", 1: "ask"})
    assert_each_says(ranks, [1], "rank 0 is lost: .*", 30)


def test_no_failure_is_known(ranks: Ranks) -> None:
    ranks.start(1, {0: "ask"})
    assert ranks.code(0) == 1
    assert ranks.lines(0) == ["error: nothing is known"]


@pytest.mark.parametrize("size", [1, 3])
def test_good_end(size: int, ranks: Ranks) -> None:
    """Nothing is said, and nothing left: the worker compares files, threads and handlers."""
    ranks.start(size, stall_timeout=STALL)
    for rank in range(size):
        assert ranks.code(rank) == 0, ranks.lines(rank)
        assert ranks.lines(rank) == []


def test_a_stop_of_all_is_no_silence(ranks: Ranks) -> None:
    """A hub that goes on reads first what it has missed."""
    ranks.start(3, steps=8, step_seconds=0.3, stall_timeout=STALL)
    ranks.reach(2)
    for rank in (1, 2, 0):
        ranks.kill(rank, signal.SIGSTOP)
    time.sleep(STALL + 1)
    for rank in (0, 1, 2):
        ranks.kill(rank, signal.SIGCONT)
        time.sleep(0.3)
    for rank in range(3):
        assert ranks.code(rank) == 0, ranks.lines(rank)
        assert ranks.lines(rank) == []


def test_a_short_stop_of_the_hub_is_no_silence(ranks: Ranks) -> None:
    ranks.start(2, steps=8, step_seconds=0.2, stall_timeout=STALL)
    ranks.reach(2)
    ranks.kill(0, signal.SIGSTOP)
    time.sleep(STALL / 2)
    ranks.kill(0, signal.SIGCONT)
    for rank in range(2):
        assert ranks.code(rank) == 0, ranks.lines(rank)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("size", "told"), [(1, 0), (2, 1)])
def test_one_signal(number: signal.Signals, size: int, told: int, ranks: Ranks) -> None:
    ranks.start(size, steps=1000)
    ranks.reach(2)
    ranks.kill(told, number)
    for rank in range(size):
        assert ranks.code(rank) == 75
    expected = f"{number.name}: stopping after this step; a second signal stops at once"
    assert ranks.lines(told) == [expected]
    assert all(ranks.lines(rank) == [] for rank in range(size) if rank != told)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_second_signal_in_c(number: signal.Signals, told: int, ranks: Ranks) -> None:
    ranks.start(2, dict.fromkeys(range(2), "wait_in_c"))
    ranks.reach(AT)
    ranks.kill(told, signal.SIGTERM)
    end = time.monotonic() + SOON
    while not ranks.lines(told) and time.monotonic() < end:
        time.sleep(0.01)
    ranks.kill(told, number)
    assert ranks.code(told, SOON) == 128 + number
    assert ranks.lines(told)[1] == f"{number.name}: a second signal; stopping at once"
    assert_each_says(
        ranks, [1 - told], f"rank {told} stopped: a second signal, {number.name}", SOON
    )


def test_signals_are_left_alone(ranks: Ranks) -> None:
    ranks.start(2, dict.fromkeys(range(2), "wait_in_c"), catch_signals=False)
    ranks.reach(AT)
    ranks.kill(1, signal.SIGTERM)
    assert ranks.code(1, SOON) == -signal.SIGTERM
    assert_each_says(ranks, [0], "rank 1 is lost: .*", SOON)


@pytest.mark.parametrize("trouble", ["hang", "fail"])
def test_an_exit_hook_does_not_keep_it(trouble: str, ranks: Ranks) -> None:
    ranks.start(2, {0: "wait_in_c", 1: "die"}, exit_hook=trouble)
    ranks.code(1)
    assert ranks.code(0, SOON) == 1
    assert ranks.lines(0)[0].startswith("error: rank 1 is lost: ")


def test_unreachable_hub(ranks: Ranks) -> None:
    ranks.start(3, walled=[2])
    for rank in range(3):
        assert ranks.code(rank) == 1
        (line,) = ranks.lines(rank)
        assert line.startswith("error: expected rank 0 at port 1 of one of "), line
        assert "--network-interfaces" in line


def test_strangers_are_kept_out(ranks: Ranks) -> None:
    ranks.start(2, steps=20, step_seconds=0.1)
    ranks.reach(1)
    address = "127.0.0.1", json.loads((ranks.folder / "1.0").read_text())["port"]
    orders = b'{"failure": ["an order", true]}\n'
    for hello in (
        b'{"token": "guess", "rank": 1}\n',
        b"[1]\n",
        b"\xff\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(address, 5) as connection:
            connection.sendall(hello + orders)
            assert connection.recv(1) == b""
    with socket.create_connection(address, 5):  # one that says nothing, until the end
        for rank in range(2):
            assert ranks.code(rank) == 0
            assert ranks.lines(rank) == []


def test_many_ranks_are_counted() -> None:
    table = HeartbeatTable(range(1000), 0.0, 300.0)
    for rank in range(1000):
        table.record(rank, Heartbeat(7 if rank in (5, 900) else 8, "step 8", "a.py:1 in f"), 1.0)
    assert table.find_stall(300.9) is None
    failure = table.find_stall(301.0)
    assert failure is not None
    assert "ranks 5, 900 are behind" in failure.text
    assert "ranks 0, 1, 2, 3 and 994 more are at" in failure.text


def test_silence_is_measured_from_the_last_word() -> None:
    table = HeartbeatTable(range(2), 0.0, 10.0)
    table.record(0, Heartbeat(), 5.0)
    assert table.find_silent(9.9) is None
    failure = table.find_silent(10.0)
    assert failure is not None
    assert failure.text.startswith(
        'rank 1 has sent no heartbeat for 10 s (last reported activity: "the st'
    )
    table.remove(1, 11.0)
    assert table.find_silent(14.0) is None
    assert HeartbeatTable(range(2), 0.0, 0.0).find_silent(1e9) is None
    assert HeartbeatTable(range(2), 0.0, 0.0).find_stall(1e9) is None


def test_the_clock_stands_still_with_the_process() -> None:
    clock = SuspendAwareClock(0.01)
    time.sleep(0.1)
    assert clock.tick() == 0.01


def test_health_is_the_age_and_progress_of_each_rank_at_work() -> None:
    table = HeartbeatTable(range(2), 0.0, 10.0)
    table.record(1, Heartbeat(7, "step 7"), 2.0)
    assert table.health(5.0) == {0: (5.0, 0), 1: (3.0, 7)}
    table.remove(0, 6.0)
    assert table.health(6.0) == {1: (4.0, 7)}
