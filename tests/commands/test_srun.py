"""Tasks, started as srun would start them, become ranks that exchange with each other."""

from __future__ import annotations

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.support.processes import Ended, run

WORKER = "tests/commands/workers/srun_rank.py"
COMMAND = (sys.executable, "-m", "launch.srun", WORKER, "--lr=2", "a b")


def task(rank: int, node: int, local_rank: int) -> dict[str, str]:
    """The variables of a task of a step with two tasks on its first node and one on its second."""
    return {
        "SLURM_JOB_ID": "71",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local_rank),
        "SLURMD_NODENAME": ("localhost", "other")[node],
    }


def free_port() -> str:
    with socket.create_server(("", 0)) as listener:
        return str(listener.getsockname()[1])


def test_tasks_on_two_nodes_become_ranks() -> None:
    """The first task comes last: the others wait for it. No process outlives its task."""
    meeting = {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": free_port(),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    places = [(0, 0), (0, 1), (1, 0)]

    def start(rank: int) -> Ended:
        time.sleep(0 if rank else 2)
        return run(COMMAND, time_limit=120, env={**task(rank, *places[rank]), **meeting})

    with ThreadPoolExecutor(len(places)) as pool:
        ended = list(pool.map(start, range(len(places))))
    assert [one.code for one in ended] == [0, 75, 75], "\n".join(one.output for one in ended)
    found = [json.loads(one.output.splitlines()[-1]) for one in ended]
    same = {"total": 111.0, "interface": "lo", "arguments": ["--lr=2", "a b"]}
    assert found == [
        {"rank": [0, 3], "local": [0, 2], "cross": [0, 2], **same},
        {"rank": [1, 3], "local": [1, 2], "cross": [0, 1], **same},
        {"rank": [2, 3], "local": [0, 1], "cross": [1, 2], **same},
    ]


def test_what_keeps_ranks_from_meeting_is_one_line() -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(
            COMMAND, time_limit=30, env={**task(0, 0, 0), "HOROVOD_GLOO_RENDEZVOUS_PORT": port}
        )
    assert ended.code == 1
    assert ended.output.startswith(f"error: expected port {port} to be free on localhost, found: ")
    assert ended.output.count("\n") == 1

    nowhere = {"SLURM_STEP_NODELIST": "no-such-node.invalid,other"}
    ended = run(COMMAND, time_limit=60, env={**task(1, 0, 1), **nowhere})
    assert ended.code == 1
    assert ended.output.startswith("error: expected the node no-such-node.invalid to have an addr")
    assert ended.output.count("\n") == 1

    ended = run(COMMAND, time_limit=30)
    assert ended.code == 1
    assert ended.output.startswith("error: expected a task of srun, found no SLURM_STEP_NODELIST")
