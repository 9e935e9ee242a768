"""Connections between ranks that carry short messages beside the training's own exchanges.

Rank 0 makes an offer: where it listens, and a token that keeps strangers out. The offer travels
over the collective; whoever holds it joins. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import secrets
import socket
from typing import Any

JOIN_SECONDS = 5.0  # for each address of rank 0
UNREACHABLE_SECONDS = 60  # a machine that acknowledges nothing for so long is gone
MESSAGE_BYTES = 1 << 16
UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Link:
    """One end of a connection: JSON objects, one a line. Never blocks.

    Attributes:
        rank: the other end's; -1 until it has said so.
        end: how the connection ended, in words; empty while it lasts.
    """

    def __init__(self, connection: socket.socket, rank: int = -1) -> None:
        self.rank = rank
        self.end = ""
        self.socket = connection
        self._rest = b""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel of a stopped process still acknowledges; that of a dead machine does not.
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREACHABLE_SECONDS * 1000
        )

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message if the connection takes it; its end is seen by `receive`."""
        try:
            self.socket.send(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        try:
            data = self.socket.recv(MESSAGE_BYTES)
            if not data:
                self.end = "its process ended"
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MESSAGE_BYTES:
                raise ValueError("no end of a message")
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
    """Rank 0's door: lets in who knows the token."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("", 0), backlog=4096)
        self.socket.setblocking(False)
        self._token = secrets.token_hex(16)

    def offer(self) -> str:
        """What another rank needs to `join`."""
        port = self.socket.getsockname()[1]
        return json.dumps({"addresses": own_addresses(), "port": port, "token": self._token})

    def admits(self, hello: Any) -> bool:
        """Whether the first message of a connection is that of a rank."""
        token = hello.get("token") if isinstance(hello, dict) else None
        return isinstance(token, str) and hmac.compare_digest(token.encode(), self._token.encode())


def join(offer: str, rank: int) -> Link:
    """Connects to rank 0 by the first of its addresses that answers.

    Raises:
        ValueError: none does.
    """
    address_of_hub = json.loads(offer)
    hello = json.dumps({"token": address_of_hub["token"], "rank": rank}).encode() + b"\n"
    problem: object = "no address"
    for address in address_of_hub["addresses"]:
        try:
            connection = socket.create_connection((address, address_of_hub["port"]), JOIN_SECONDS)
        except OSError as error:
            problem = error
            continue
        try:
            connection.sendall(hello)
            # Another machine may have the same address inside: only rank 0 answers.
            if connection.recv(1, socket.MSG_PEEK) == b"{":
                return Link(connection, rank=0)
            problem = f"{address} is not rank 0"
        except OSError as error:
            problem = error
        connection.close()
    raise ValueError(
        f"expected rank 0 at port {address_of_hub['port']} of one of "
        f"{', '.join(address_of_hub['addresses'])}, found none that answers ({problem}); let the "
        "machines reach each other's ports, or name their network to horovodrun with "
        "--network-interfaces"
    )


def own_addresses() -> list[str]:
    """This machine's names and IPv4 addresses, the launcher's choice first, loopback last."""
    import psutil  # Horovod's own dependency; a process alone needs neither

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
