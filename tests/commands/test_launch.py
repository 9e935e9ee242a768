"""Jobs that `launch` starts, restarts, stops and gives up, with and without ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dlrm.checkpoint.directory import checkpoint_name
from launch import command_line
from tests.support.processes import (
    MARK,
    ROOT,
    kill,
    remaining,
    run,
    wait_until_gone,
    without_modules,
)

# Bash and processes without TensorFlow: the same in both profiles.
pytestmark = pytest.mark.one_profile
WORKERS = ROOT / "tests" / "commands" / "workers"
STARTED = 60.0  # seconds horovodrun and its ranks may take on busy cores
SOON = 15.0


class Launch:
    """`python3 -m launch` with a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.flag = f"--checkpoint_dir={folder}"

    def start(
        self, *arguments: object, plan: list[Any], path: str = os.path.dirname(sys.executable)
    ) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch", *map(str, arguments)],
                cwd=ROOT,
                start_new_session=True,
                stdout=out,
                stderr=err,
                env={
                    **os.environ,
                    "PATH": os.pathsep.join((path, os.environ["PATH"])),
                    "PYTHONPATH": str(ROOT),
                    MARK: self.mark,
                },
            )

    def stand_in(self, *arguments: object, plan: list[Any], flags: tuple[str, ...] = ()) -> int:
        """Runs to the end with the worker in its runner's place; gives the exit code."""
        self.start_stand_in(*arguments, plan=plan, flags=flags)
        return self.process.wait(STARTED)

    def start_stand_in(
        self, *arguments: object, plan: list[Any], flags: tuple[str, ...] = ()
    ) -> None:
        programs = self.folder / "bin"
        programs.mkdir()
        for name in ("horovodrun", "mpirun"):
            script = programs / name
            script.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{WORKERS}/fake_horovodrun.py" "$@"\n'
            )
            script.chmod(0o755)
        command = ["-np", 2, *arguments, "--", "main.py", self.flag, *flags]
        self.start(*command, plan=plan, path=str(programs))

    def starts(self) -> list[list[Any]]:
        """When each start of the stand-in came, and its arguments."""
        count = len(list(self.folder.glob("argv.*")))
        return [json.loads((self.folder / f"argv.{n}").read_text()) for n in range(count)]

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.out() + self.err()
            time.sleep(0.02)

    def running(self, start: int, ranks: int) -> Callable[[], bool]:
        names = [self.folder / f"running.{start}.{rank}" for rank in range(ranks)]
        return lambda: all(name.exists() for name in names)

    def out(self) -> str:
        return (self.folder / "out").read_bytes().decode()

    def err(self) -> str:
        return (self.folder / "err").read_text()

    def said(self) -> list[str]:
        return [line[8:] for line in self.err().splitlines() if line.startswith("launch: ")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Launch]:
    started = Launch(tmp_path)
    yield started
    left = remaining(started.mark, started.process.pid)
    kill(left)
    started.process.wait()
    assert not left


def test_a_rank_and_horovodrun_are_killed_then_ctrl_c(job: Launch) -> None:
    """Real ranks: the survivors' lines come out, no two attempts overlap, one signal ends all."""
    job.start("-np", 3, "--", WORKERS / "launched_rank.py", job.flag, plan=["die", "run", "run"])
    job.until(job.running(2, 3), 2 * STARTED)
    for prefix in ("", r"\[2\]<stderr>:"):  # rank 0 has none
        lost = rf"^{prefix}error: rank 1 is lost: its process ended"
        assert re.search(lost, job.err(), re.MULTILINE), job.err()
    assert "Process 1 exit with status code 137." in job.out()
    # The survivors may be gone before horovodrun sees it.
    assert re.match(r"attempt 1 ended with code (137|1) after", job.said()[0])

    (horovodrun,) = (
        process
        for process in psutil.Process(job.process.pid).children()
        if "--gloo" in process.cmdline()
    )
    # With its helpers, which would end what they have started.
    for process in (horovodrun, *horovodrun.children()):
        process.kill()
    job.until(lambda: len(job.said()) == 2, 2 * STARTED)
    for rank in range(3):
        second = int((job.folder / f"starts.{rank}").read_text().split()[1])
        assert not psutil.pid_exists(second)
    assert "attempt 2 ended with code 137" in job.said()[1]

    job.until(job.running(3, 3), STARTED)
    begin = time.monotonic()
    os.killpg(job.process.pid, signal.SIGINT)  # what Ctrl-C does
    assert job.process.wait(SOON) == 75
    print(f"stopped in {time.monotonic() - begin:.1f} s")
    told = [(job.folder / f"told.{rank}").read_text() for rank in range(3)]
    assert sorted(told) == ["", "", "SIGTERM"]
    assert wait_until_gone(job.mark, job.process.pid) == {}


def test_killed_launch_leaves_nothing(job: Launch) -> None:
    job.start("-np", 2, "--", WORKERS / "launched_rank.py", job.flag, plan=["run"])
    job.until(job.running(1, 2), STARTED)
    assert len(remaining(job.mark, job.process.pid)) > 4
    begin = time.monotonic()
    job.process.kill()
    job.process.wait()
    job.until(lambda: not remaining(job.mark, job.process.pid), SOON)
    print(f"all gone in {time.monotonic() - begin:.1f} s")


def test_a_second_signal_ends_a_job_that_hears_none(job: Launch) -> None:
    job.start_stand_in(plan=[{"seconds": 60, "deaf": True}])
    job.until(job.out, SOON)
    job.process.send_signal(signal.SIGTERM)
    job.until(lambda: len(job.said()) == 2, SOON)
    assert "no rank runs on this machine" in job.said()[1]
    job.process.send_signal(signal.SIGINT)
    assert job.process.wait(SOON) == 128 + signal.SIGINT
    assert remaining(job.mark, -1) == {}


def since_the_last(starts: list[list[Any]]) -> list[float]:
    """Seconds between starts."""
    return [after[0] - before[0] for before, after in zip(starts, starts[1:])]


def test_goes_on(job: Launch) -> None:
    """A failure, a preemption, and the end."""
    plan = [{"code": 1, "lines": ["error: a"]}, {"code": 75, "checkpoint": checkpoint_name(5)}, {}]
    assert job.stand_in("--verbose", "-H", "a:1,b:1", plan=plan, flags=("--resume=none",)) == 0
    pauses = since_the_last(job.starts())
    print("pauses", pauses)
    assert pauses[0] >= 1
    assert pauses[1] < 2, "the second pause of a failure"
    common = ["--gloo", "-np", "2", "--verbose", "-H", "a:1,b:1", str(ROOT / "hvd_wrapper.sh")]
    command = [*common, sys.executable, "main.py", job.flag, "--resume=none"]
    arguments = [start[1:] for start in job.starts()]
    # Only a checkpoint of this job may be gone on from.
    assert arguments == [command, command, [*command, "--resume=auto"]]


def test_with_mpi(job: Launch) -> None:
    """The options of Open MPI come before the user's, which so have the last word."""
    assert job.stand_in("--mpi", "--bind-to", "core", "-H", "a,b", plan=[{}]) == 0
    ((_, *arguments),) = job.starts()
    own = arguments.index("-np")
    assert arguments[:2] == ["--bind-to", "none"]
    users = ["-np", "2", "--bind-to", "core", "-H", "a,b", str(ROOT / "hvd_wrapper.sh")]
    assert arguments[own:] == [*users, sys.executable, "main.py", job.flag]


def test_options_of_the_runner(capsys: pytest.CaptureFixture[str]) -> None:
    """As horovodrun and mpirun know them, with one dash or two."""
    words = [
        "-hostfile",
        "hosts",
        "-p",
        "2222",
        "-mca",
        "btl",
        "^openib",
        "--network-interfaces",
        "a",
    ]
    options, runner, command = command_line.parse(["-np", "4", *words, "--", "main.py", "-h"])
    assert (options.np, runner, command) == (4, words, ["main.py", "-h"])
    with pytest.raises(SystemExit):
        command_line.parse(["-h"])
    assert "--max_restarts" in capsys.readouterr().out


def test_without_mpirun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ValueError, match="^--mpi: expected mpirun on PATH, .*`make mpi-setup`"):
        command_line.main(["-np", "2", "--mpi", "--", "main.py"])


def test_gives_up_on_the_same_errors(job: Launch) -> None:
    plan: list[Any] = [{"code": 3, "lines": ["error: no file", "error: again", "loss 1"]}] * 2
    assert job.stand_in("--max_restarts", 9, plan=plan) == 3
    assert job.said()[1].startswith("giving up after 2 attempts: two attempts ended with the same")
    assert [line.strip() for line in job.said()[2:]] == [
        line
        for number in (1, 2)
        for line in (
            next(said for said in job.said() if said.startswith(f"attempt {number}: exit code 3")),
            "error: no file",
            "error: again",
        )
    ]


def test_does_not_give_up_while_checkpoints_come(job: Launch) -> None:
    plan = [{"code": 1, "lines": ["error: a"], "checkpoint": checkpoint_name(n)} for n in range(3)]
    assert job.stand_in("--max_restarts", 2, plan=plan) == 1
    first, second = since_the_last(job.starts())
    assert first >= 1
    assert second >= 2
    assert "giving up after 3 attempts: --max_restarts=2 is used up" in job.said()


def test_unfinished_checkpoints_are_no_progress(job: Launch) -> None:
    plan = [
        {"code": 1, "lines": ["error: a"], "checkpoint": f".unfinished-{checkpoint_name(n)}"}
        for n in range(3)
    ]
    assert job.stand_in("--max_restarts", 2, plan=plan) == 1
    assert len(job.starts()) == 2


def test_a_runner_that_does_not_end_is_killed() -> None:
    """It waits for a host that is out of reach, though the ranks here gave up."""
    runner = "HOROVOD_RANK=0 sh -c 'sleep 3; echo error: rank 1 is lost >&2'; exec sleep 60"
    script = (
        "import sys; from launch import supervisor as s; s.ENDING_SECONDS, s.LOOK_SECONDS = 2, 0.1;"
        "sys.exit(s.Supervisor(['sh', '-c', sys.argv[1]], [], 0, None).run())"
    )
    ended = run([sys.executable, "-c", script, runner], time_limit=STARTED)
    assert ended.code == 128 + signal.SIGKILL
    assert 5 <= ended.seconds < STARTED / 2
    assert ended.count("launch: the ranks on this machine have ended after an error") == 1
    assert ended.count("launch:   error: rank 1 is lost") == 1


def test_a_signal_between_attempts(job: Launch) -> None:
    job.start_stand_in(plan=[{"code": 1}, {"code": 1}, {"code": 1}])
    job.until(lambda: len(job.said()) == 2, SOON)
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(1.5) == 128 + signal.SIGTERM
    assert len(job.said()) == 2, "no third start"


def test_output_comes_through_as_it_is_written(job: Launch) -> None:
    """Each line at once, and only the other ranks' lines with horovodrun's prefix."""
    job.start_stand_in(plan=[{"seconds": 1, "lines": ["hm"]}])
    job.until(lambda: job.out() == "loss 0.5\r", SOON)
    assert job.process.poll() is None
    assert job.process.wait(SOON) == 0
    assert job.out() == "loss 0.5\rloss 0.25"
    assert job.err() == "[1]<stderr>:hm\n"


def test_no_checkpoints_no_restarts() -> None:
    with pytest.raises(ValueError, match="^expected --checkpoint_dir among the flags, found none"):
        command_line.main(["-np", "2", "--max_restarts=1", "--", "main.py", "--lr=1"])
    with pytest.raises(ValueError, match="^expected -- and main.py"):
        command_line.main(["-np", "2"])
    for words in ("-np 0", "-np -1", "-np 1 --max_restarts -1", "-np 1 --max_restarts=-1"):
        with pytest.raises(
            ValueError, match="^expected --?(np of 1|max_restarts of 0) or more, found"
        ):
            command_line.main([*words.split(), "--", "main.py", "--checkpoint_dir=a"])


def test_flags_are_read_as_main_reads_them(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_text("# comment\n--checkpoint_dir=inner\n\n")
    outer.write_text(f"--lr=1\n--flagfile={inner}\n  -resume=none  \n")
    for words, expected in (
        (["--lr=1"], None),
        (["--checkpoint_dir=a"], "a"),
        (["--checkpoint_dir", "a", "--lr", "1"], "a"),
        (["-checkpoint_dir=a", "--checkpoint_dir=b=c"], "b=c"),
        ([f"--flagfile={outer}"], "inner"),
        ([f"--flagfile={outer}", "--checkpoint_dir=a"], "a"),
        (["--checkpoint_dir=a", "--flagfile", str(outer)], "inner"),
        (["--keep_checkpoints=2", "--run_dir=checkpoint_dir=x"], None),
        (["--save_checkpoint_path=a"], "a"),
        (["--checkpoint_dir=a", "--save_checkpoint_path", "b", "--load_checkpoint_path=c"], "b"),
    ):
        assert command_line.flag_value(words, "checkpoint_dir") == expected, words
    assert command_line.flag_value([f"--flagfile={outer}"], "resume") == "none"
    assert command_line.flag_value(["--load_checkpoint_path=c"], "resume") == "c"
    with pytest.raises(ValueError, match="^--flagfile: .*nowhere"):
        command_line.main(["-np", "1", "--", "main.py", "--flagfile=nowhere"])


def test_without_psutil(tmp_path: Path) -> None:
    """One line with the remedy."""
    ended = run(
        [sys.executable, "-m", "launch", "-np", "1", "--", "main.py"],
        time_limit=60,
        env=without_modules(tmp_path, "psutil"),
    )
    assert ended.code == 1
    (line,) = ended.output.splitlines()
    assert line.startswith("error: expected the project's environment, found ")
    assert "without psutil" in line
