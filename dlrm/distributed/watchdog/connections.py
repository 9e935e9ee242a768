"""Connections between ranks that carry short messages, separate from the training's exchanges.

Rank 0, the hub, listens. Its credentials (where it listens, and a secret token) reach the other
ranks through the collective; a rank that presents them is let in. What the messages mean is the
caller's concern.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any

from dlrm.distributed.watchdog.signals import WakeupPipe

HUB = 0
CONNECT_SECONDS = 5.0  # for each address of the hub
UNREACHABLE_SECONDS = 60  # a machine that acknowledges nothing for this long is gone
MESSAGE_BYTES = 1 << 16
UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Connection:
    """One end of a connection that carries JSON objects, one per line. Never blocks.

    Args:
        connected: The connected socket.
        rank: The rank at the other end; -1 until it has been authenticated.

    Attributes:
        rank: The rank at the other end; -1 until it has been authenticated.
        end: How the connection ended, in words; empty while it lasts.
    """

    def __init__(self, connected: socket.socket, rank: int = -1) -> None:
        self.rank = rank
        self.end = ""
        self.socket = connected
        self._incomplete = b""
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel of a stopped process still acknowledges; that of a dead machine does not.
        connected.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREACHABLE_SECONDS * 1000
        )

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message if the connection takes it; `receive` finds out if it has ended."""
        try:
            self.socket.send(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have arrived; sets `end` if the connection has ended."""
        try:
            data = self.socket.recv(MESSAGE_BYTES)
            if not data:
                self.end = "its process ended"
            *lines, self._incomplete = (self._incomplete + data).split(b"\n")
            if len(self._incomplete) > MESSAGE_BYTES:
                raise ValueError("message too long")
            return [json.loads(line) for line in lines]
        except BlockingIOError:
            return []
        except OSError as error:
            unreachable = error.errno in UNREACHABLE
            self.end = f"no answer ({error.strerror})" if unreachable else "its process ended"
            return []
        except ValueError as error:
            self.end = f"its messages were damaged ({error})"
            return []


class Listener:
    """Accepts connections on the hub and authenticates the ranks behind them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("", 0), backlog=4096)
        self.socket.setblocking(False)
        self._token = secrets.token_hex(16)

    def credentials(self) -> str:
        """Returns what another rank needs for `connect_to_hub`."""
        port = self.socket.getsockname()[1]
        return json.dumps({"addresses": own_addresses(), "port": port, "token": self._token})

    def authenticate(self, connection: Connection, hello: Any) -> bool:
        """Sets the rank of a connection if its first message holds the token; ends it otherwise."""
        token = hello.get("token") if isinstance(hello, dict) else None
        if not isinstance(token, str) or not hmac.compare_digest(
            token.encode(), self._token.encode()
        ):
            connection.end = "it is no rank of this job"
            return False
        connection.rank = hello["rank"]
        return True


class ConnectionPool:
    """All connections of this rank and the events on them.

    The hub is connected to every other rank, each of those to the hub.

    Args:
        wakeup: Ends `wait` early.
    """

    def __init__(self, wakeup: WakeupPipe) -> None:
        self._wakeup = wakeup
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup, selectors.EVENT_READ)
        self._listener: Listener | None = None
        self._connections: list[Connection] = []

    def listen(self) -> str:
        """Lets other ranks connect; returns the credentials they need for it."""
        self._listener = Listener()
        self._selector.register(self._listener.socket, selectors.EVENT_READ)
        return self._listener.credentials()

    def authenticate(self, connection: Connection, hello: Any) -> bool:
        """Does what `Listener.authenticate` does."""
        assert self._listener is not None, "only the hub has connections to authenticate"
        return self._listener.authenticate(connection, hello)

    def add(self, connection: Connection) -> None:
        """Adds a connection."""
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def remove(self, connection: Connection) -> None:
        """Removes and closes a connection."""
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def send(self, message: dict[str, Any], skip: Connection | None = None) -> None:
        """Sends a message to every authenticated rank but the one at the connection `skip`."""
        for connection in self._connections:
            if connection is not skip and connection.rank >= 0:
                connection.send(message)

    def wait(self, seconds: float) -> tuple[Sequence[Connection], bool]:
        """Waits for an event and accepts new connections.

        Returns:
            The connections to receive from, and whether the wake-up pipe is readable.
        """
        readable, woken = [], False
        for key, _ in self._selector.select(seconds):
            if isinstance(key.data, Connection):
                readable.append(key.data)
            elif key.fileobj is self._wakeup:
                woken = True
            elif self._listener is not None:
                with contextlib.suppress(OSError):  # closed again already
                    self.add(Connection(self._listener.socket.accept()[0]))
        return readable, woken

    def drain(self, seconds: float) -> None:
        """Ends all connections once the other ends have read what was sent, or time is up."""
        for key in list(self._selector.get_map().values()):
            if not isinstance(key.data, Connection):
                self._selector.unregister(key.fileobj)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        end = time.monotonic() + seconds
        while self._connections and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data.receive()
                if key.data.end:
                    self.remove(key.data)

    def close(self) -> None:
        """Closes all connections, and the listener if there is one."""
        for connection in list(self._connections):
            self.remove(connection)
        if self._listener:
            self._listener.socket.close()
        self._selector.close()


def connect_to_hub(credentials: str, rank: int) -> Connection:
    """Connects to the hub at the first of its addresses that answers.

    Args:
        credentials: The hub's `ConnectionPool.listen()`.
        rank: This process.

    Raises:
        ValueError: No address answers.
    """
    hub = json.loads(credentials)
    hello = json.dumps({"token": hub["token"], "rank": rank}).encode() + b"\n"
    problem: object = "no address"
    for address in hub["addresses"]:
        try:
            connected = socket.create_connection((address, hub["port"]), CONNECT_SECONDS)
        except OSError as error:
            problem = error
            continue
        try:
            connected.sendall(hello)
            # Another machine may have the same private address: only the hub answers.
            if connected.recv(1, socket.MSG_PEEK) == b"{":
                return Connection(connected, HUB)
            problem = f"{address} is not rank {HUB}"
        except OSError as error:
            problem = error
        connected.close()
    raise ValueError(
        f"expected rank {HUB} at port {hub['port']} of one of {', '.join(hub['addresses'])}, "
        f"found none that answers ({problem}); let the machines reach each other's ports, or "
        "name their network to horovodrun with --network-interfaces"
    )


def own_addresses() -> list[str]:
    """Returns this machine's IPv4 addresses and name, the launcher's choice first."""
    import psutil  # a dependency of Horovod, which a single process does not need

    chosen = os.environ.get("HOROVOD_GLOO_IFACE")
    found = [
        (interface != chosen, entry.address.startswith("127."), entry.address)
        for interface, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    addresses = [address for *_, address in sorted(found)]
    host = os.environ.get("HOROVOD_HOSTNAME", "localhost")
    return addresses if host == "localhost" else [*addresses[:1], host, *addresses[1:]]
