"""The built image: its user, trials of run_with_docker.sh, and the pods of an MPIJob.

The pods are containers with the commands of launch/kubernetes/mpijob.yaml, in a network that knows
them by the operator's names, with the operator's files and the pods' privileges. What Kubernetes
itself does, to start a container again, is not part of it.

    docker build -f launch/docker/Dockerfile -t dlrm .
    DLRM_IMAGE=dlrm python3 -m pytest tests/commands/test_image.py
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import pytest
import yaml

from dlrm.checkpoint.directory import finished, step_of
from tests.support.jobs import EPOCH_STEPS, flags, same, weights, write_data
from tests.support.processes import ROOT

IMAGE = os.environ.get("DLRM_IMAGE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.one_profile,
    pytest.mark.skipif(
        not IMAGE or os.geteuid() != 0,
        reason="needs root, Docker, and DLRM_IMAGE, an image of launch/docker/Dockerfile",
    ),
]
UID, PREEMPTED, TIME_LIMIT = 1000, 75, 900.0
EPOCHS = 40  # so that signals arrive in the middle of them
STEPS = EPOCHS * EPOCH_STEPS
TRAINING = flags(
    {"epochs": EPOCHS, "eval_interval": 10000, "checkpoint_interval": 20, "log_interval": 10}
)
NAMESPACE = "research"


def docker(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )


def last_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint; 0 if there is none."""
    return max(map(step_of, finished(run_dir / "checkpoints")), default=0)


def later(run_dir: Path, step: int) -> Callable[[], bool]:
    """Says, when called, whether a run has a checkpoint after a step."""
    return lambda: last_step(run_dir) > step


def wait_for(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIME_LIMIT
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and a folder that the image's user may write to."""
    folder = tmp_path_factory.mktemp("image")
    write_data(folder / "data")
    (folder / "runs").mkdir()
    os.chown(folder / "runs", UID, UID)
    # The folder of pytest is this user's alone.
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return folder


def test_its_user_is_not_root_and_it_has_neither_keys_nor_compilers() -> None:
    script = """
    id -u
    ls /etc/ssh/ssh_host_* ~/.ssh 2>/dev/null
    command -v g++ make nvcc
    touch main.py 2>/dev/null && echo the project can be changed
    python3 -c 'import pytest' 2>/dev/null && echo tests
    """
    done = docker("run", "--rm", IMAGE, "bash", "-c", script)
    assert done.stdout == f"{UID}\n", done.stdout + done.stderr


@pytest.fixture(scope="module")
def logs(folder: Path) -> Path:
    return folder / "logs"


def variables_of(logs: Path, **more: str) -> dict[str, str]:
    """The variables of run_with_docker.sh: two ranks on the tests' data."""
    data = str(logs.parent / "data")
    flags = " ".join(TRAINING)
    given = {"CONT": IMAGE, "DATADIR": data, "LOGDIR": str(logs), "DGXSYSTEM": "demo"}
    return {**os.environ, **given, "FLAGS": flags, "CLEAR_CACHES": "0", **more}


def trials(logs: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the script to its end; its output has both streams."""
    return subprocess.run(
        ["launch/docker/run_with_docker.sh"],
        cwd=ROOT,
        env=variables_of(logs, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
    )


@pytest.fixture(scope="module")
def stopped(logs: Path) -> Path:
    """The folder of a training that was stopped twice, and went on to its end."""
    run_dir, before = logs / "one_1", 0
    # A signal to the script alone, and one from a terminal, which all its processes get.
    for send in (
        lambda pid: os.kill(pid, signal.SIGTERM),
        lambda pid: os.killpg(pid, signal.SIGINT),
    ):
        process = subprocess.Popen(
            ["launch/docker/run_with_docker.sh"],
            cwd=ROOT,
            env=variables_of(logs, RUN_ID="one", SEED="5"),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for("checkpoint", later(run_dir, before))
        send(process.pid)
        _, errors = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == PREEMPTED, errors
        assert "a signal stopped training 1 of 1 after a checkpoint; RUN_ID=one and " in errors
        assert not (run_dir / "finished").exists()
        before = last_step(run_dir)
    again = trials(logs, RUN_ID="one", SEED="5")
    assert again.returncode == 0, again.stdout
    return run_dir


def test_a_training_that_signals_stopped_goes_on(stopped: Path) -> None:
    assert (stopped / "finished").exists()
    assert stopped.with_suffix(".log").read_text().count("resumed from ") == 2
    assert last_step(stopped) == STEPS


def test_each_training_has_its_seed(logs: Path, stopped: Path) -> None:
    """The second of two has the seed of the one that was stopped, and ends as that did."""
    both = trials(logs, RUN_ID="two", SEED="4", NEXP="2")
    assert both.returncode == 0, both.stdout
    runs = (logs / "two_1", logs / "two_2", stopped)
    first, second, other = (weights(finished(run / "checkpoints")[-1]) for run in runs)
    assert same(second, other)
    assert not same(first, other)
    nothing = trials(logs, RUN_ID="two", NEXP="2")
    assert nothing.stdout.splitlines() == [
        f"run_with_docker.sh: training {trial} of 2 was finished before" for trial in (1, 2)
    ]


class Pods:
    """The pods of the manifest's MPIJob with one rank each, as containers.

    Args:
        folder: The data, and the folder `runs`.
        network: The network in which they find each other.
    """

    def __init__(self, folder: Path, network: str) -> None:
        job = yaml.safe_load((ROOT / "launch/kubernetes/mpijob.yaml").read_text())
        self._specs = job["spec"]["mpiReplicaSpecs"]
        self._home = job["spec"]["sshAuthMountPath"]
        self._folder, self._network = folder, network
        keys = folder / "keys"
        keys.mkdir()
        generate = ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f"]
        subprocess.run([*generate, str(keys / "id_rsa")], check=True)
        (keys / "authorized_keys").write_text((keys / "id_rsa.pub").read_text())
        for key in keys.iterdir():
            key.chmod(0o644)  # as in a Secret that is mounted outside root's home
        hosts = [f"{name}.dlrm.{NAMESPACE}.svc" for name in ("dlrm-launcher", "dlrm-worker-0")]
        (folder / "hostfile").write_text("".join(f"{host} slots=1\n" for host in hosts))
        self._hosts = dict(zip(("Launcher", "Worker"), hosts))

    def name(self, role: str) -> str:
        """The name of a pod's container."""
        return f"{self._network}-{role.lower()}"

    def start(self, role: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a pod; its output is the client's."""
        host = self._hosts[role]
        mounts = {
            self._folder / "keys": f"{self._home}:ro",
            self._folder / "hostfile": "/etc/mpi/hostfile:ro",
            self._folder / "data": "/data:ro",
            self._folder / "runs": "/runs",
        }
        return subprocess.Popen(
            [
                *("docker", "run", "--rm", f"--name={self.name(role)}", "--sig-proxy=false"),
                *(f"--network={self._network}", f"--network-alias={host}"),
                *(f"--hostname={host.partition('.')[0]}", f"--user={UID}:{UID}"),
                *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
                *(f"--volume={source}:{target}" for source, target in mounts.items()),
                *(IMAGE, *command),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def container(self, role: str) -> dict:
        """What the manifest says of a pod's container."""
        return self._specs[role]["template"]["spec"]["containers"][0]

    def launcher(self, run: str) -> subprocess.Popen[str]:
        """Starts the launcher, with the tests' data and one rank on each host."""
        words = self.container("Launcher")
        command = [*words["command"], *words["args"]]
        command[command.index("-np") + 1] = "2"
        command = command[: command.index("main.py") + 1]
        folders = [f"--run_dir=/runs/{run}", f"--checkpoint_dir=/runs/{run}/checkpoints"]
        return self.start("Launcher", [*command, "--data_dir=/data", *folders, *TRAINING])

    def worker(self) -> None:
        """Starts the worker, and returns once its probe succeeds."""
        container = self.container("Worker")
        self.start("Worker", container["command"])
        probe = f"</dev/tcp/localhost/{container['readinessProbe']['tcpSocket']['port']}"
        attempt = ("exec", self.name("Worker"), "bash", "-c", probe)
        wait_for("sshd", lambda: docker(*attempt).returncode == 0)

    def checkpoints(self, run: str) -> list[Path]:
        """The complete checkpoints of a run, the newest last."""
        return finished(self._folder / "runs" / run / "checkpoints")


@pytest.fixture(scope="module")
def pods(folder: Path) -> Iterator[Pods]:
    network = f"dlrm-test-{uuid.uuid4().hex[:8]}"
    assert docker("network", "create", "--internal", network).returncode == 0
    pods = Pods(folder, network)
    try:
        pods.worker()
        yield pods
    finally:
        for role in ("Launcher", "Worker"):
            docker("kill", pods.name(role))
        docker("network", "rm", network)


@pytest.fixture(scope="module")
def uninterrupted(pods: Pods) -> Path:
    """The last checkpoint of a run that nobody stopped."""
    launcher = pods.launcher("uninterrupted")
    output, _ = launcher.communicate(timeout=TIME_LIMIT)
    assert launcher.returncode == 0, output
    return pods.checkpoints("uninterrupted")[-1]


def test_a_signal_to_the_launchers_pod_is_survived(pods: Pods, uninterrupted: Path) -> None:
    launcher = pods.launcher("launcher")
    wait_for("checkpoint", lambda: pods.checkpoints("launcher"))
    docker("kill", "--signal=TERM", pods.name("Launcher"))
    output, _ = launcher.communicate(timeout=TIME_LIMIT)
    assert launcher.returncode == PREEMPTED, output
    assert pods.checkpoints("launcher")[-1].name != uninterrupted.name
    again = pods.launcher("launcher")
    output, _ = again.communicate(timeout=TIME_LIMIT)
    assert again.returncode == 0, output
    assert same(weights(pods.checkpoints("launcher")[-1]), weights(uninterrupted))


def test_a_worker_that_is_replaced_is_survived(pods: Pods, uninterrupted: Path) -> None:
    """Its hook ends the ranks; then it is gone, and comes back after an attempt without it."""
    launcher = pods.launcher("worker")
    assert launcher.stdout is not None
    wait_for("checkpoint", lambda: pods.checkpoints("worker"))
    hook = pods.container("Worker")["lifecycle"]["preStop"]["exec"]["command"]
    stopped = docker("exec", pods.name("Worker"), *hook)
    docker("kill", pods.name("Worker"))
    assert re.search(r"stopping the ranks in /dlrm: \d+$", stopped.stderr), stopped.stderr
    lines: list[str] = []
    for line in launcher.stdout:
        lines.append(line)
        if "attempt 2 ended" in line:
            break
    pods.worker()
    output = "".join([*lines, *launcher.stdout])
    assert launcher.wait(TIME_LIMIT) == 0, output
    assert "attempt 1 ended with code 75" in output
    assert same(weights(pods.checkpoints("worker")[-1]), weights(uninterrupted))
