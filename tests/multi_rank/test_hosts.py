"""Training on two hosts: the same result as on one, and what happens when a cable is pulled.

The hosts are namespaces of this machine (tests/support/hosts.py), so that their network, processes
and SSH are real.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dlrm.checkpoint.directory import checkpoint_name
from tests.support.hosts import Host, Network, why_not
from tests.support.jobs import EPOCH_STEPS, Job, flags, on_ranks, same, weights, write_data
from tests.support.processes import GRACE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
STALL = 40.0  # --stall_timeout: compiling the step may take half of it on busy cores
ENDING = 5.0  # seconds that a rank may take to end after it has waited for so long
EPOCHS = 25
TIME_LIMIT = 900.0  # horovodrun imports TensorFlow on each host before it starts a rank
TWO_HOSTS = ["-np", "2", "-H", "a:1,b:1", "--disable-cache", "--start-timeout", "300"]
# The first 20 steps may take less time than there is between two heartbeats.
LOST = (
    r"rank {} has sent no heartbeat for 40 s "
    r"\(last reported activity: \"(?:the start|step \d+)\"\); "
    "the other ranks stop; start the same command again to continue from the last checkpoint"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    folder = tmp_path / "network"
    folder.mkdir()
    with Network(folder, ["a", "b"]) as network:
        yield network
        for host in network.hosts.values():
            assert host.left_after(GRACE_SECONDS) == []


def training(data: Path, **settings: object) -> list[str | Path]:
    given = {"stall_timeout": STALL, "epochs": EPOCHS, "eval_interval": 500, **settings}
    return ["main.py", *flags({"data_dir": data, **given})]


def start(host: Host, output: Path, command: Sequence[str | Path]) -> Job:
    return Job(output, host.command(*command), time_limit=TIME_LIMIT)


def steps_done(job: Job) -> int:
    return max(map(int, re.findall(r"Iteration:(\d+)\t", job.output)), default=-1)


def test_a_cable_that_comes_back_in_time_then_too_late(
    data: Path, network: Network, tmp_path: Path
) -> None:
    """`launch` over SSH: waits out a short break, ends after a long one, and goes on from there."""
    common = {"checkpoint_interval": 100, "keep_checkpoints": 1}
    command = training(data, checkpoint_dir=tmp_path / "checkpoints", **common)
    launch = ["python3", "-m", "launch", *TWO_HOSTS, "--", *command]
    with start(network.hosts["a"], tmp_path / "output", launch) as job:
        job.wait_for_step(20)
        network.pull("b")
        time.sleep(STALL / 4)
        stopped_at = steps_done(job)
        network.plug_in("b")
        job.wait_for_step(stopped_at + 150)  # with a checkpoint on the way

        network.pull("b")
        seconds = job.wait_until_gone([0, 1], STALL + ENDING)
        job.wait_for("the launcher's line", lambda: "launch: attempt 1 ended" in job.output)
        network.plug_in("b")
        ended = job.end()
    print(f"ranks gone {seconds:.1f} s after the cable")
    assert ended.code == 0, ended.output
    assert re.search(f"^error: {LOST.format(1)}$", ended.output, re.MULTILINE), ended.output

    # A core for each rank, as on the hosts: by their number a rank divides its additions.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    alone = training(data, checkpoint_dir=tmp_path / "alone", **common)
    command = ["taskset", "--cpu-list", cores, *on_ranks(2, "python3", *alone)]
    ended = Job(tmp_path / "alone.txt", command, time_limit=TIME_LIMIT).end()
    assert ended.code == 0, ended.output
    last = checkpoint_name(EPOCHS * EPOCH_STEPS)
    assert same(weights(tmp_path / "checkpoints" / last), weights(tmp_path / "alone" / last))


@pytest.mark.parametrize("lost", ["a", "b"])
def test_both_sides_of_a_cable_name_the_other(
    lost: str, data: Path, network: Network, tmp_path: Path
) -> None:
    """`horovodrun` on host a, with rank 0; the cable of either host is pulled."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("horovodrun"),
        *("--gloo", *TWO_HOSTS, "./hvd_wrapper.sh"),
        # To files: what rank 1 writes to the SSH server no longer gets through.
        *("sh", "-c", 'exec "$@" 2>"$0.$HOROVOD_RANK"'),
        tmp_path / "errors",
        *("python3", *training(data)),
    ]
    with start(network.hosts["a"], tmp_path / "output", command) as job:
        job.wait_for_step(20)
        network.pull(lost)
        seconds = job.wait_until_gone([0, 1], STALL + ENDING)
        assert job.end().code == 1
    print(f"ranks gone {seconds:.1f} s after the cable")
    for rank in range(2):
        said = (tmp_path / f"errors.{rank}").read_text()
        (line,) = re.findall("^error: (.*)$", said, re.MULTILINE)
        assert re.fullmatch(LOST.format(1 - rank), line), said
