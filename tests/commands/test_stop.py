"""`python3 -m launch.stop` in a container: the first process is another, the ranks are below it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = [
    pytest.mark.one_profile,
    # It stops every rank below process 1, so it must not see those of other tests.
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None,
        reason="a process namespace needs root and unshare (util-linux)",
    ),
]
# A rank writes what a checkpoint would be, after a while; a thread or child of it is no rank.
RANK = """
import pathlib, signal, subprocess, sys, time
signals = []
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def stop(number, frame):
    signals.append(number)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
while not signals:
    time.sleep(0.01)
time.sleep(1)
assert child.poll() is None and len(signals) == 1, (child.poll(), signals)
child.kill()
pathlib.Path(sys.argv[2]).write_text("saved")
"""
# Process 1 of the namespace: it starts two ranks, one other process and a rank of another folder's
# training, as sshd would.
FIRST = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
ranks = [
    subprocess.Popen(
        [sys.executable, folder / "rank.py", folder / f"up{rank}", folder / f"end{rank}"],
        env={**os.environ, "HOROVOD_RANK": str(rank)},
    )
    for rank in range(2)
]
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
other = subprocess.Popen(sleep)
elsewhere = subprocess.Popen(sleep, env={**os.environ, "HOROVOD_RANK": "0"}, cwd=folder)
while len(list(folder.glob("up*"))) < 2:
    time.sleep(0.01)
stop = subprocess.Popen([sys.executable, "-m", "launch.stop"])
# The first process collects its children, as any does.
codes = {}
while stop.pid not in codes:
    pid, status = os.wait()
    codes[pid] = os.waitstatus_to_exitcode(status)
saved = [(folder / f"end{rank}").exists() for rank in range(2)]
print(codes[stop.pid], saved, other.poll(), elsewhere.poll())
other.kill()
elsewhere.kill()
"""


def test_it_ends_the_ranks_and_waits_for_them(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", FIRST, tmp_path],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0 [True, True] None None\n", done.stderr
    assert f"stopping the ranks in {ROOT}: " in done.stderr


def test_it_says_that_there_is_no_rank(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "launch.stop"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"launch: stopping the ranks in {ROOT}: none runs\n"


@pytest.mark.parametrize("argument", ["--help", "--dry-run"])
def test_arguments_stop_nothing(argument: str) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "launch.stop"]
        + [argument],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "stopping" not in done.stderr
    assert ("usage: python3 -m launch.stop" in done.stdout) == (argument == "--help")
    assert ("error: unrecognized arguments: --dry-run" in done.stderr) == (argument != "--help")
