"""Several hosts on this machine: Linux namespaces, joined by cables that can be pulled.

Each host has a name, a core, processes, a network and an SSH server of its own; the files are
shared, as on a cluster with a common file system. Needs root. Independent of training.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.support.processes import ROOT

PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "taskset": "util-linux",
    "unshare": "util-linux",
}
# Debian keeps ip and sshd where PATH need not lead.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
START_SECONDS = 20.0
OWN_NAMESPACES = ["--net", "--mount", "--uts", "--pid"]
# The host's first process. /run and ~/.ssh are its own; sshd takes over as the parent of orphans.
INIT = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh" ~/.ssh
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
exec "$(command -v sshd)" -D -e -f "$2/sshd_config" 2>>"$2/sshd.$1"
"""


def why_not() -> str:
    """What is missing for hosts on this machine; empty if nothing is."""
    missing = {package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)}
    if os.geteuid():
        return "needs root"
    if missing:
        return f"needs the packages {', '.join(sorted(missing))}"
    tried = subprocess.run(["unshare", *OWN_NAMESPACES, "true"], capture_output=True, text=True)
    return f"needs namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """A host that runs.

    Attributes:
        name: Its name, under which the others know it.
        pid: Its first process, as seen from outside.
    """

    def __init__(self, name: str, pid: int, core: int) -> None:
        self.name, self.pid = name, pid
        self._core = str(core)

    def command(self, *words: str | Path) -> list[str | Path]:
        """The command line that runs a command on this host, in the project's root."""
        enter = ["nsenter", "--target", str(self.pid), *OWN_NAMESPACES, f"--wdns={ROOT}"]
        return [*enter, "taskset", "--cpu-list", self._core, *words]

    def processes(self) -> list[psutil.Process]:
        """All its live processes but those of the SSH server."""
        space, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter(["name", "status"]):
            with contextlib.suppress(OSError):
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                ended = process.info["status"] == psutil.STATUS_ZOMBIE
                if inside and not ended and process.info["name"] != "sshd":
                    found.append(process)
        return found

    def left_after(self, seconds: float) -> list[psutil.Process]:
        """What still runs after so many seconds; a process that ends takes a moment to be gone."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return left


class Network:
    """Hosts with a cable each to the same switch.

    Args:
        folder: An empty folder for their settings.
        names: Their names. The first has the address 10.0.0.1, and so on.

    Attributes:
        hosts: The hosts by name.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._addresses = {name: f"10.0.0.{number}" for number, name in enumerate(names, 1)}
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        """Starts the hosts and connects them."""
        with contextlib.ExitStack() as stack:
            self._write_settings()
            self._switch = stack.enter_context(_namespaces(["--net"], "sleep", "infinity"))
            self._on_switch("link", "add", "switch", "type", "bridge")
            self._on_switch("link", "set", "switch", "up")
            cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
            for name, core in zip(self._addresses, cores):
                bind = ["taskset", "--cpu-list", str(core)]
                first = [*bind, "sh", "-c", INIT, "sh", name, os.fspath(self._folder)]
                options = [*OWN_NAMESPACES, "--mount-proc"]
                pid = stack.enter_context(_namespaces(options, *first))
                self.hosts[name] = Host(name, pid, core)
                self._connect(self.hosts[name])
            self._wait_for_servers()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pull(self, name: str) -> None:
        """Pulls a host's cable: it loses its link, and the others get no answer from it."""
        self._on_switch("link", "set", "dev", name, "down")

    def plug_in(self, name: str) -> None:
        """Puts a host's cable back."""
        self._on_switch("link", "set", "dev", name, "up")

    def _write_settings(self) -> None:
        hosts = "".join(f"{address} {name}\n" for name, address in self._addresses.items())
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        keys = self._folder / "ssh"
        keys.mkdir(mode=0o700)
        for key in (keys / "id_ed25519", self._folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
        (self._folder / "sshd_config").write_text(
            f"HostKey {self._folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        )
        Path("~/.ssh").expanduser().mkdir(mode=0o700, exist_ok=True)  # a place to mount theirs

    def _connect(self, host: Host) -> None:
        far_end = ["peer", "name", host.name, "netns", str(self._switch)]
        _run_ip("link", "add", "eth0", "netns", str(host.pid), "type", "veth", *far_end)
        self._on_switch("link", "set", "dev", host.name, "master", "switch", "up")
        address = f"{self._addresses[host.name]}/24"
        _run_ip("address", "add", address, "dev", "eth0", inside=host.pid)
        _run_ip("link", "set", "eth0", "up", inside=host.pid)
        # A network that is the same on each host and joins none, as container engines make them.
        _run_ip("link", "add", "docker0", "type", "bridge", inside=host.pid)
        _run_ip("address", "add", "172.17.0.1/16", "dev", "docker0", inside=host.pid)
        _run_ip("link", "set", "docker0", "up", inside=host.pid)

    def _on_switch(self, *words: str) -> None:
        _run_ip(*words, inside=self._switch)

    def _wait_for_servers(self) -> None:
        end = time.monotonic() + START_SECONDS
        first = next(iter(self.hosts.values()))
        for name in self.hosts:
            ssh = ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=2", name, "true"]
            while (tried := subprocess.run(first.command(*ssh), capture_output=True)).returncode:
                assert time.monotonic() < end, tried.stderr.decode()
                time.sleep(0.1)


@contextlib.contextmanager
def _namespaces(options: Sequence[str], *command: str) -> Iterator[int]:
    """Runs a command in namespaces of its own, until the end; yields its process id."""
    words = ["unshare", *options, "--fork", "--kill-child", *command]
    with subprocess.Popen(words, env={**os.environ, "PATH": PATH}) as unshare:
        try:
            end = time.monotonic() + START_SECONDS
            while not (children := psutil.Process(unshare.pid).children()):
                assert time.monotonic() < end, f"did not start: {words}"
                time.sleep(0.01)
            yield children[0].pid
        finally:
            unshare.kill()


def _run_ip(*words: str, inside: int | None = None) -> None:
    enter = ["nsenter", "--target", str(inside), "--net"] if inside else []
    done = subprocess.run(
        [*enter, "ip", *words], capture_output=True, text=True, env={"PATH": PATH}
    )
    assert done.returncode == 0, (words, done.stderr)
