"""Starts the real programs as a user would, under a time limit, and finds what they leave behind.

Independent of training. Every process started here carries a mark in its environment, so that it is
found wherever launchers put it: horovodrun gives each rank a separate session, out of reach of the
process group that started it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_PROCESS_MARK"
GRACE_SECONDS = 5.0  # for the last process to be gone after the one that was started has ended
# TF2_BEHAVIOR is what TensorFlow has set in this process; users' processes begin without it.
LAUNCHER = re.compile(
    r"HOROVOD_|OMPI_|PMIX?_|MPI_|MV2_|SLURM_|CUDA_VISIBLE|OMP_NUM|TF_NUM|TF2_BEHAVIOR"
)


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: The exit code.
        output: The standard output and standard error of the process and its children.
        seconds: The time from start to end.
    """

    code: int
    output: str
    seconds: float

    def count(self, text: str) -> int:
        """The number of times that `text` occurs in the output."""
        return self.output.count(text)


def run(
    command: Sequence[str | Path],
    *,
    time_limit: float,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Ended:
    """Runs a command in a new session and checks that no process of it outlives it.

    Args:
        command: The program and its arguments; programs in the folder of `sys.executable` come
            first.
        time_limit: The longest that it may take, in seconds.
        env: Variables in addition to this process's, of which launchers' and TensorFlow's are
            removed.
        cwd: The folder in which it runs.

    Raises:
        AssertionError: It ran out of time, or left a process behind; all are killed then.
    """
    mark = uuid.uuid4().hex
    variables = {name: value for name, value in os.environ.items() if not LAUNCHER.match(name)}
    variables["PATH"] = os.path.dirname(sys.executable) + os.pathsep + variables.get("PATH", "")
    variables.update(env or {})
    variables[MARK] = mark
    start = time.monotonic()
    # A file and not a pipe: a process left behind must not keep us reading.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [os.fspath(part) for part in command],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            try:
                code = process.wait(time_limit)
            except subprocess.TimeoutExpired:
                code = None
            seconds = time.monotonic() - start
            left = wait_until_gone(mark, process.pid) if code is not None else {}
        finally:
            kill(remaining(mark, process.pid))
            process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert code is not None, f"not done after {time_limit} s: {command}\n{text}"
    assert not left, f"left behind by {command}: {left}\n{text}"
    return Ended(code, text, seconds)


def horovodrun(
    ranks: int,
    *command: str | Path,
    time_limit: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Runs a command on several ranks, each through the wrapper script."""
    launcher = Path(sys.executable).with_name("horovodrun")
    return run(
        [launcher, "--gloo", "-np", str(ranks), "./hvd_wrapper.sh", *command],
        time_limit=time_limit,
        env=env,
    )


def interrupted(command: Sequence[str | Path], *, after: str, time_limit: float) -> Ended:
    """Runs a command and interrupts it, as Ctrl-C does, once it has printed a certain line.

    Args:
        command: The program and its arguments.
        after: The line's beginning.
        time_limit: The longest that the command may take to end from then on, in seconds.

    Returns:
        How it ended, with its time and its output from then on.

    Raises:
        AssertionError: It ended without such a line.
        subprocess.TimeoutExpired: It did not end in time; it is killed then.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any(line.startswith(after) for line in lines), f"no line {after!r}: {command}"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=time_limit)
        finally:
            process.kill()
    return Ended(process.returncode, output, time.monotonic() - start)


def remaining(mark: str, session: int) -> dict[int, str]:
    """Live processes of a session or with a mark in their environment: pid -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            # After the name, which may hold anything and ends with the last parenthesis.
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            environment = (folder / "environ").read_bytes()
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended meanwhile, or another user's
        ours = int(its_session) == session or f"{MARK}={mark}".encode() in environment
        if ours and state != "Z":
            found[int(folder.name)] = words
    return found


def wait_until_gone(mark: str, session: int) -> dict[int, str]:
    """Waits for processes to end; returns what still remains after `GRACE_SECONDS`."""
    end = time.monotonic() + GRACE_SECONDS
    while (left := remaining(mark, session)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def kill(pids: Mapping[int, str]) -> None:
    """Ends processes at once."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def without_modules(folder: Path, *names: str) -> dict[str, str]:
    """Makes Python programs unable to import some top-level modules.

    Args:
        folder: An empty folder for the hook.
        names: The modules.

    Returns:
        The variables to run the program with.
    """
    (folder / "sitecustomize.py").write_text(
        f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
        return None

sys.meta_path.insert(0, Blocked())
"""
    )
    return {"PYTHONPATH": os.fspath(folder)}
