"""A Slurm cluster of its own: real daemons in a private folder, on hosts of `tests.support.hosts`.

Needs root and Debian's packages slurm-wlm and munge; touches no Slurm that the machine has already.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import hosts
from tests.support.processes import LAUNCHER

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
READY_SECONDS = 60.0
REQUEUE_SECONDS = 5  # that a requeued job waits; Slurm allows no less
CONFIG = """
ClusterName=test
SlurmctldHost=n1
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={seconds}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] CPUs=1
PartitionName=low Nodes=n[1-2] MaxTime=INFINITE PriorityTier=1 GraceTime=120 Default=YES
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""
# Nothing is confined, but slurmd wants to know which cgroups there are.
CGROUPS_1 = "CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n"
CGROUPS_2 = "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n"


def why_not() -> str:
    """What is missing for a cluster on this machine; empty if nothing is."""
    if not all(shutil.which(program, path=hosts.PATH) for program in PROGRAMS):
        return "needs the packages slurm-wlm, munge"
    return hosts.why_not()


class SlurmCluster:
    """Two nodes of one core; a job in the partition `high` preempts one in `low`.

    Args:
        folder: An empty folder, with a short path: it holds sockets.

    Attributes:
        network: Its hosts, with a cable each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not LAUNCHER.match(name)},
            "PATH": hosts.PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> SlurmCluster:
        """Starts the hosts and the daemons, and waits until both nodes are idle."""
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        (self._folder / "slurm.conf").write_text(
            CONFIG.format(folder=self._folder, seconds=REQUEUE_SECONDS)
        )
        (self._folder / "cgroup.conf").write_text(CGROUPS_2 if unified else CGROUPS_1)
        for name in ("network", "state", *NODES):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [
            f"--{name}-file={self._folder}/munge.{name}" for name in ("key", "pid", "log", "seed")
        ]
        munge = ["munged", "-F", "--force", f"--socket={self._folder}/munge.socket", *files]
        with contextlib.ExitStack() as stack:
            # The end of the hosts is that of all processes on them.
            stack.callback(self._wait_for_daemons)
            self.network = stack.enter_context(hosts.Network(self._folder / "network", NODES))
            self._start("n1", *munge)
            self._start("n1", "slurmctld", "-D")
            for node in NODES:
                self._start(node, "slurmd", "-D", "-N", node)
            self.until(
                lambda: self.ask("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"],
                READY_SECONDS,
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, host: str, *command: str) -> None:
        with open(self._folder / "daemons.log", "ab") as log:
            daemon = subprocess.Popen(
                self.network.hosts[host].command(*command),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._daemons.append(daemon)

    def _wait_for_daemons(self) -> None:
        for daemon in self._daemons:
            daemon.wait(READY_SECONDS)

    def ask(self, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Runs a command in the project's root on the first node; returns what it prints."""
        return subprocess.run(
            self.network.hosts["n1"].command(*command),
            env={**self._environment, **(env or {})},
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
        ).stdout

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Waits for a condition."""
        end = time.monotonic() + seconds
        while not condition():
            log = (self._folder / "daemons.log").read_text(errors="replace")
            assert time.monotonic() < end, log[-4000:]
            time.sleep(0.2)
