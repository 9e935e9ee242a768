"""Which rank a task of Slurm becomes, beside what horovodrun makes of the same nodes."""

from __future__ import annotations

import sys

import pytest

from launch.srun import SlurmTask, first_and_last, main
from tests.support.processes import run

STEP = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "n[1-3]"}

# What horovodrun tells its ranks, printed by a process: horovod's launcher loads TensorFlow.
ASSIGNMENTS = """
import sys
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.gloo_run import create_slot_env_vars
for slots in sys.argv[1:]:
    hosts = parse_hosts(slots)
    size = sum(host.slots for host in hosts)
    print([create_slot_env_vars(slot) for slot in get_host_assignments(hosts, size, size)])
"""


def tasks(counts: str, *, per_node: list[int]) -> list[dict[str, str]]:
    """Slurm's variables of each task, in the order of the ranks."""
    places = [(node, local) for node, count in enumerate(per_node) for local in range(count)]
    return [
        {
            **STEP,
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(len(places)),
            "SLURM_LOCALID": str(local),
            "SLURM_NODEID": str(node),
            "SLURMD_NODENAME": f"n{node + 1}",
            "SLURM_STEP_TASKS_PER_NODE": counts,
        }
        for rank, (node, local) in enumerate(places)
    ]


def test_every_task_is_the_rank_that_horovodrun_would_make_of_it() -> None:
    shapes = {
        "1": [1],
        "2": [2],
        "1(x2)": [1, 1],
        "4(x3)": [4, 4, 4],
        "2,1": [2, 1],
        "3(x2),1": [3, 3, 1],
        "1,3(x2)": [1, 3, 3],
    }
    hosts = [
        ",".join(f"n{node + 1}:{count}" for node, count in enumerate(per_node))
        for per_node in shapes.values()
    ]
    ended = run([sys.executable, "-c", ASSIGNMENTS, *hosts], time_limit=120)
    assert ended.code == 0, ended.output
    expected = [eval(line) for line in ended.output.splitlines() if line.startswith("[{")]
    assert len(expected) == len(shapes)
    for (counts, per_node), ranks in zip(shapes.items(), expected):
        found = [
            SlurmTask.from_environment(task).horovod_variables()
            for task in tasks(counts, per_node=per_node)
        ]
        for own, its in zip(found, ranks):
            assert its.items() <= own.items(), counts
            assert own["HOROVOD_CONTROLLER"] == own["HOROVOD_CPU_OPERATIONS"] == "gloo"
        assert len(found) == len(ranks)


@pytest.mark.parametrize(
    ("nodes", "first", "last"),
    [
        ("gpu7", "gpu7", "gpu7"),
        ("n[1-2]", "n1", "n2"),
        ("gpu[01-03,07],login", "gpu01", "login"),
        ("a,b[3,5-10]", "a", "b10"),
        ("rack[1-2]node[3-4]", "rack1node3", "rack2node4"),
        ("dgx-a[009-120]-ib", "dgx-a009-ib", "dgx-a120-ib"),
        ("x[1-3,8].site", "x1.site", "x8.site"),
    ],
)
def test_first_and_last_node(nodes: str, first: str, last: str) -> None:
    assert first_and_last(nodes) == (first, last)


def test_all_tasks_of_a_step_have_one_port_and_other_steps_have_others() -> None:
    def port(job: int, step: int, rank: int = 0) -> int:
        task = tasks("2", per_node=[2])[rank]
        task.update(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
        return SlurmTask.from_environment(task).port()

    assert port(71, 2) == port(71, 2, rank=1)
    ports = {port(job, step) for job in range(900, 1000) for step in range(10)}
    assert len(ports) == 1000
    assert min(ports) >= 1024
    assert max(ports) < 32768  # where Linux's ephemeral ports begin


def test_what_slurm_does_not_say_is_named() -> None:
    for name in tasks("2", per_node=[2])[0]:
        task = tasks("2", per_node=[2])[0]
        del task[name]
        with pytest.raises(ValueError, match=f"expected a task of srun, found no {name}; usage: "):
            SlurmTask.from_environment(task)


@pytest.mark.parametrize(
    "wrong", [{"SLURM_STEP_NUM_TASKS": "3"}, {"SLURM_LOCALID": "2"}, {"SLURM_NODEID": "1"}]
)
def test_contradicting_variables_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected SLURM_STEP_TASKS_PER_NODE=2 to describe"):
        SlurmTask.from_environment({**tasks("2", per_node=[2])[0], **wrong})


def test_a_program_is_required() -> None:
    for arguments in ([], ["--lr=2"]):
        with pytest.raises(ValueError, match=r"expected main\.py and its flags; usage: srun"):
            main(arguments)
