"""The command `python3 -m launch.srun`: a task that Slurm's srun started becomes a rank.

    srun --ntasks-per-node=8 --wait=60 ./hvd_wrapper.sh python3 -m launch.srun main.py --flags...

Horovod needs neither ssh between the nodes nor MPI then. The first task offers the store in which
the ranks find each other; every task states in Horovod's variables which rank it is, and becomes
the program.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dlrm import cli

with cli.project_environment():
    import psutil

    from launch.rendezvous import RendezvousStore, wait_for_store

USAGE = "usage: srun -n RANKS --wait=60 ./hvd_wrapper.sh python3 -m launch.srun main.py --flags..."
ADDRESS, PORT = "HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT"
PORTS = range(10000, 30000)  # below those that Linux gives to connections
START_SECONDS = 300.0  # between the starts of two tasks of a step


class SlurmTask(NamedTuple):
    """A task of a step, as Slurm's variables describe it.

    Attributes:
        job: The job's number.
        step: The step's number, within the job.
        rank: This task among all of the step.
        size: The number of tasks of the step.
        local_rank: This task among those of its node.
        node: This node among those of the step.
        node_name: Its name.
        tasks: The number of tasks of each node.
        first_node: The name of the step's first node.
        last_node: The name of its last node.
    """

    job: int
    step: int
    rank: int
    size: int
    local_rank: int
    node: int
    node_name: str
    tasks: tuple[int, ...]
    first_node: str
    last_node: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> SlurmTask:
        """Reads what srun sets.

        Raises:
            ValueError: A variable is missing, or the variables contradict each other.
        """
        try:
            nodes = environment["SLURM_STEP_NODELIST"]
            task = cls(
                int(environment["SLURM_JOB_ID"]),
                int(environment["SLURM_STEP_ID"]),
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
                int(environment["SLURM_NODEID"]),
                environment["SLURMD_NODENAME"],
                tuple(expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])),
                *first_and_last(nodes),
            )
        except KeyError as error:
            raise ValueError(
                f"expected a task of srun, found no {error.args[0]}; {USAGE}, or without Slurm "
                "python3 -m launch"
            ) from None
        here = sum(task.tasks[task.node : task.node + 1])  # none on a node that the step lacks
        if sum(task.tasks) != task.size or task.local_rank >= here:
            raise ValueError(
                f"expected SLURM_STEP_TASKS_PER_NODE={environment['SLURM_STEP_TASKS_PER_NODE']} to "
                f"describe {task.size} tasks, among them task {task.local_rank} of node "
                f"{task.node}; start the program with srun itself"
            )
        return task

    def horovod_variables(self) -> dict[str, str]:
        """Returns which rank this is, in the variables that Horovod reads."""
        # Horovod calls the ranks with one local rank "cross"; not every node need have one.
        cross = [node for node, tasks in enumerate(self.tasks) if tasks > self.local_rank]
        numbers = {
            "RANK": self.rank,
            "SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_SIZE": self.tasks[self.node],
            "CROSS_RANK": cross.index(self.node),
            "CROSS_SIZE": len(cross),
        }
        return {
            **{f"HOROVOD_{name}": str(number) for name, number in numbers.items()},
            "HOROVOD_HOSTNAME": self.node_name,
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "PYTHONUNBUFFERED": "1",
        }

    def port(self) -> int:
        """Returns a port that every task derives alike, and other steps hardly ever."""
        return PORTS[(self.job + 1009 * self.step) % len(PORTS)]

    def store_name(self) -> str:
        """Returns what tells this step's store from that of any other."""
        return f"job {self.job}, step {self.step}"


def expand_counts(text: str) -> list[int]:
    """Returns the tasks of each node: `8(x2),4` means 8, 8 and 4."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, repeat in groups for _ in range(int(repeat or 1))]


def first_and_last(nodes: str) -> tuple[str, str]:
    """Returns the first and the last name of a list such as `gpu[01-03,07],login`."""
    names = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", names[0])
    last = re.sub(r"\[(?:[^\]]*[,-])?(\w+)\]", r"\1", names[-1])
    return first, last


def find_address(name: str) -> str:
    """Returns the IPv4 address of a node.

    Raises:
        ValueError: It has none.
    """
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise ValueError(
            f"expected the node {name} to have an address, found: {error}; set "
            "HOROVOD_GLOO_RENDEZVOUS_ADDR to an address of the first node"
        ) from error


def interface_towards(address: str) -> str:
    """Returns the name of this machine's network interface that leads to an address.

    Raises:
        ValueError: None does.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, PORTS[0]))  # sends nothing, but finds the way
        except OSError as error:
            raise ValueError(
                f"expected a way to {address}, found: {error}; set HOROVOD_GLOO_IFACE to the "
                "name of the interface that leads to the other nodes"
            ) from error
        own = probe.getsockname()[0]
    return next(
        interface
        for interface, entries in psutil.net_if_addrs().items()
        if own in {entry.address for entry in entries}
    )


def join_step(environment: Mapping[str, str]) -> dict[str, str]:
    """Offers the store on rank 0, and finds it on the others.

    Args:
        environment: The task's variables. What they say of Horovod's address, port and interface
            is kept.

    Returns:
        The variables to add for the program.

    Raises:
        ValueError, OSError: The ranks cannot find each other.
    """
    task = SlurmTask.from_environment(environment)
    variables = task.horovod_variables()
    if task.size == 1:
        return variables
    address = environment.get(ADDRESS) or find_address(task.first_node)
    port = int(environment.get(PORT) or task.port())
    if task.rank == 0:
        try:
            store = RendezvousStore(port, task.store_name())
        except OSError as error:
            raise ValueError(
                f"expected port {port} to be free on {task.node_name}, found: {error}; set "
                "HOROVOD_GLOO_RENDEZVOUS_PORT to one that is"
            ) from error
        store.serve_beside()
    else:
        wait_for_store(address, port, task.store_name(), START_SECONDS)
    # A machine may know itself by a loopback address: there, the way to another node counts.
    elsewhere = task.last_node if task.node == 0 and ADDRESS not in environment else address
    interface = environment.get("HOROVOD_GLOO_IFACE") or interface_towards(find_address(elsewhere))
    return {
        **variables,
        ADDRESS: address,
        PORT: str(port),
        "HOROVOD_GLOO_IFACE": interface,
        "NCCL_SOCKET_IFNAME": environment.get("NCCL_SOCKET_IFNAME") or interface,
    }


def main(argv: Sequence[str]) -> int:
    """Becomes the program; returns only if it cannot.

    Raises:
        ValueError, OSError: The program cannot be started as a rank.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"expected main.py and its flags; {USAGE}")
    environment = {**os.environ, **join_step(os.environ)}
    os.execve(sys.executable, [sys.executable, *argv], environment)


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
