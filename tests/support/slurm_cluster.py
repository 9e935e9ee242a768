"""A Slurm cluster of its own: real daemons in a private folder, two nodes that are this machine.

Needs root and Debian's packages slurm-wlm and munge; touches no Slurm that the machine has already.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.processes import LAUNCHER, ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
MISSING = ", ".join(program for program in PROGRAMS if not shutil.which(program))
NODES = ("n1", "n2")
READY_SECONDS, ENDED_SECONDS = 60.0, 30.0

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
AuthType=auth/munge
# A requeued job waits until its last credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
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
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=low Nodes=n[1-2] MaxTime=INFINITE PriorityTier=1 GraceTime=120 Default=YES
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""
# Nothing is confined, but slurmd wants to know which cgroups there are.
CGROUPS_1 = "CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n"
CGROUPS_2 = "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n"


class SlurmCluster:
    """Two nodes of one core; a job in the partition `high` preempts one in `low`.

    Args:
        folder: An empty folder, with a short path: it holds sockets.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not LAUNCHER.match(name)},
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        """Starts the daemons and waits until both nodes are idle."""
        try:
            self._start_daemons()
        except BaseException:
            self._end_daemons()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the jobs, then the daemons."""
        try:
            self.ask("scancel", "--user=root")
            self.until(lambda: not self.ask("squeue", "-h"), ENDED_SECONDS)
        finally:
            self._end_daemons()

    def _start_daemons(self) -> None:
        host = socket.gethostname().partition(".")[0]
        config = CONFIG.format(host=host, folder=self._folder, ports=_free_ports(3))
        (self._folder / "slurm.conf").write_text(config)
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        (self._folder / "cgroup.conf").write_text(CGROUPS_2 if unified else CGROUPS_1)
        for name in ("state", *NODES):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = [f"--{name}-file={self._folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", "-F", "--force", f"--key-file={key}", *munge)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self.until(
            lambda: self.ask("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], READY_SECONDS
        )

    def _end_daemons(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(ENDED_SECONDS)

    def _start(self, program: str, *arguments: str) -> None:
        if program == "munged":
            arguments = (*arguments, f"--socket={self._folder}/munge.socket")
        with open(self._folder / "daemons.log", "ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self._environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
            )

    def ask(self, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Runs one of Slurm's commands in the project's folder; returns what it prints."""
        return subprocess.run(
            [os.fspath(part) for part in command],
            cwd=ROOT,
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
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
