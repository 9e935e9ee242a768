"""Faults of ranks: signals, kills, hangs, and the supervisor that starts a job again.

Each function tries one fault once, and says what it found. What happens at a random moment is read
from the output, never assumed.
"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any, Callable

from dlrm.checkpoint.directory import checkpoint_name, unfinished_path
from tests.faults.trials import (
    RESUMABLE,
    Trial,
    expect,
    expect_error,
    expect_resumable,
    kill,
    succeeded,
)
from tests.support import jobs
from tests.support.jobs import CHECKPOINT_INTERVAL, EVAL_INTERVAL, STEPS, Job

AT_ONCE_SECONDS = 5.0
LOST_SECONDS = 60.0  # for all others to be gone after a rank was killed
STALL_TIMEOUT = 15.0  # more than a first step, which is compiled, on a busy machine
STALL_SLACK = 15.0  # to notice and to end


def signal_in_training(trial: Trial) -> str:
    """All ranks save the same step and end with 75; the restart ends as if nothing happened."""
    rank, step = trial.any_rank(), trial.any_step()
    number = trial.random.choice([signal.SIGTERM, signal.SIGINT])
    with trial.start() as job:
        job.wait_for_step(step)
        time.sleep(trial.random.uniform(0, 0.05))
        job.send(rank, number)
        saved = expect_resumable(trial, job)
    assert saved >= step, f"step {saved} was saved after step {step}"
    trial.resume_to_same_end()
    return f"{number.name} to rank {rank} after step {step}: 75, step {saved} saved, same end"


def signal_in_evaluation(trial: Trial) -> str:
    """The evaluation is broken off, and done by the restart."""
    rank = trial.any_rank()
    number = trial.random.choice([signal.SIGTERM, signal.SIGINT])
    with trial.start() as job:
        job.wait_for_step(EVAL_INTERVAL)
        time.sleep(trial.random.uniform(0, 0.3))
        job.send(rank, number)
        saved = expect_resumable(trial, job)
    evaluation = f"Evaluate in {EVAL_INTERVAL}th iteration"
    broken_off = evaluation not in job.output
    assert saved == EVAL_INTERVAL or not broken_off, f"step {saved} saved"
    output = trial.resume_to_same_end()
    assert (evaluation in output) == broken_off, f"evaluated twice or never:\n{output}"
    how = "redone" if broken_off else "just over"
    return f"{number.name} to rank {rank}: 75, step {saved} saved, evaluation {how}, same end"


def second_signal(trial: Trial) -> str:
    """It ends a rank at once, also one that waits for a rank that never comes."""
    rank, step = trial.any_rank(), trial.any_step()
    with trial.start() as job:
        job.wait_for_step(step)
        pids = job.ranks()
        others = [pids[other] for other in pids if other != rank]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        os.kill(pids[rank], signal.SIGTERM)
        job.wait_for("the first signal's line", lambda: "a second signal stops" in job.output)
        os.kill(pids[rank], signal.SIGTERM)
        seconds = job.wait_until_gone([rank], AT_ONCE_SECONDS)
        kill(others)
        ended = job.end()
    # The launcher may see the end of those that were killed first.
    expect(f"Process {rank} exit with status code {128 + signal.SIGTERM}.", ended.output)
    return f"two SIGTERM to rank {rank} after step {step}: gone in {seconds:.1f} s"


def killed_in_training(trial: Trial) -> str:
    """The others end, naming it; the restart ends as if nothing happened."""
    step = trial.any_step()
    return killed(trial, f"after step {step}", lambda job: job.wait_for_step(step))


def killed_in_checkpoint(trial: Trial) -> str:
    """As in training, while files of a checkpoint are half written."""
    step = trial.random.randrange(CHECKPOINT_INTERVAL, STEPS - 15, CHECKPOINT_INTERVAL)
    unfinished = unfinished_path(trial.checkpoints, step)
    finished = trial.checkpoints / checkpoint_name(step)
    return killed(
        trial,
        f"in the checkpoint of step {step}",
        lambda job: job.wait_for(
            "the checkpoint", lambda: unfinished.exists() or finished.exists()
        ),
    )


def killed_in_evaluation(trial: Trial) -> str:
    """As in training."""

    def wait(job: Job) -> None:
        job.wait_for_step(EVAL_INTERVAL)
        time.sleep(trial.random.uniform(0, 0.3))

    return killed(trial, f"in the evaluation after step {EVAL_INTERVAL}", wait)


def killed(trial: Trial, moment: str, wait: Callable[[Job], None]) -> str:
    rank = trial.any_rank()
    with trial.start() as job:
        wait(job)
        time.sleep(trial.random.uniform(0, 0.03))
        job.send(rank, signal.SIGKILL)
        seconds = job.wait_until_gone(range(trial.ranks), LOST_SECONDS)
        ended = job.end()
    assert ended.code != 0, ended.output
    if trial.ranks > 1:
        expect_error(ended.output, f"rank {rank} is lost")
    trial.resume_to_same_end()
    return f"kill -9 of rank {rank} {moment}: others gone in {seconds:.1f} s, same end"


def stopped_rank(trial: Trial) -> str:
    """A rank that SIGSTOP stopped is named, and the others end."""
    rank, step = trial.any_rank(), trial.any_step()
    with trial.start(stall_timeout=STALL_TIMEOUT) as job:
        job.wait_for_step(step)
        pid = job.ranks()[rank]
        os.kill(pid, signal.SIGSTOP)
        others = [other for other in range(trial.ranks) if other != rank]
        seconds = job.wait_until_gone(others, STALL_TIMEOUT + STALL_SLACK)
        kill([pid])
        ended = job.end()
    assert ended.code != 0, ended.output
    expect_error(ended.output, f"rank {rank} has sent no heartbeat for {STALL_TIMEOUT:g} s")
    return f"SIGSTOP of rank {rank} after step {step}: named, others gone in {seconds:.1f} s"


def looping_rank(trial: Trial) -> str:
    """A rank in an endless loop is named, and all end."""
    rank, step = trial.any_rank(), trial.any_step()
    program = ("-m", "tests.faults.workers.endless_loop", str(rank), str(step))
    with trial.start(*program, stall_timeout=STALL_TIMEOUT) as job:
        job.wait_for_step(step)
        seconds = job.wait_until_gone(range(trial.ranks), STALL_TIMEOUT + STALL_SLACK)
        ended = job.end()
    assert ended.code != 0, ended.output
    line = expect_error(
        ended.output, f"no rank has made progress for {STALL_TIMEOUT:g} s", "endless_loop.py"
    )
    named = re.search(r'ranks? ([\d, ]+) (?:is|are) at "[^"]*" \(endless_loop\.py', line)
    assert named, line
    assert named[1] == str(rank), line
    return f"endless loop in rank {rank} at step {step}: named, all gone in {seconds:.1f} s"


def launch(trial: Trial, **settings: Any) -> Job:
    """Starts the training by `python3 -m launch`."""
    settings = {"data_dir": trial.baseline.data, "checkpoint_dir": trial.checkpoints, **settings}
    supervisor = ["python3", "-m", "launch", "-np", str(trial.ranks), "--max_restarts", "2"]
    command = [*supervisor, "--", "main.py", *jobs.flags(settings)]
    return Job(trial.folder / "launch.txt", command)


def launch_restarts(trial: Trial) -> str:
    """A job whose rank was killed recovers without help, as if nothing had happened."""
    rank, step = trial.any_rank(), trial.any_step()
    with launch(trial) as job:
        job.wait_for_step(step)
        time.sleep(trial.random.uniform(0, 0.05))
        job.send(rank, signal.SIGKILL)
        output = succeeded(job.end())
    expect("launch: attempt 1 ended with code ", output)
    expect_error(output, f"rank {rank} is lost")
    trial.expect_end()
    return f"kill -9 of rank {rank} after step {step}: restarted by itself, same end"


def launch_gives_up(trial: Trial) -> str:
    """A user's error is not repeated endlessly, and is listed."""
    with launch(trial, data_dir=trial.folder / "nowhere") as job:
        ended = job.end()
    assert ended.code == 1, ended.output
    expect("launch: giving up after 2 attempts", ended.output)
    summary = ended.output.rpartition("launch: giving up")[2]
    assert f"{trial.folder / 'nowhere'}" in summary, ended.output
    return "missing data: given up after 2 attempts, listed"


def launch_stops(trial: Trial) -> str:
    """SIGTERM has the job write a checkpoint and end with 75; a restart goes on."""
    step = trial.any_step()
    with launch(trial) as job:
        job.wait_for_step(step)
        time.sleep(trial.random.uniform(0, 0.05))
        (supervisor,) = job.processes("-m", "launch")
        supervisor.terminate()
        saved = expect_resumable(trial, job)
    assert job.end().code == RESUMABLE
    trial.resume_to_same_end()
    return f"SIGTERM to launch after step {step}: 75, step {saved} saved, same end"
