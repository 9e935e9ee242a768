"""Connections between the ranks of one host, and the exchange of bytes over them.

Each two ranks share a Unix socket. The kernel closes it with either process, however that ends, and
there is no file that could be left behind. Only bytes travel here; what they mean is no concern of
this module.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("=q")  # what a message begins with: the number of bytes that follow
_RANK = struct.Struct("=i")  # what a connection begins with: the rank that opened it
_CREDENTIALS = struct.Struct("=3i")  # process, user and group at the other end of a connection
# Bytes that a connection may hold for its reader, so that a rank which sends need not wait for it.
# The kernel allows at most net.core.wmem_max.
BUFFER = 4 << 20
LONGEST_WAIT = 2e6  # seconds; what the kernel's poll can count
ALIGNMENT = 64  # of what is received: TensorFlow copies an array whose address is no multiple of it

Bytes = NDArray[np.uint8]


class NamedSocket:
    """A name under which the other ranks of this host reach this one."""

    def __init__(self) -> None:
        # A name that begins with a zero byte is no file's; the kernel forgets it with the process.
        self.name = secrets.token_hex(16)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(f"\0{self.name}")
        self.socket.listen(socket.SOMAXCONN)


class HostLinks:
    """A connection to each other rank; all ranks run on this host, for the same user.

    All ranks create it together and exchange in the same order, one exchange at a time.

    Args:
        rank: This process, 0 <= rank < the number of ranks.
        listener: This rank's; it is closed.
        names: The names of all ranks' listeners.
        timeout: Seconds that a rank waits for another.

    Raises:
        OSError: A rank cannot be reached.
    """

    def __init__(
        self, rank: int, listener: NamedSocket, names: Sequence[str], timeout: float
    ) -> None:
        self._rank = rank
        self._timeout = min(timeout, LONGEST_WAIT)
        self._links: dict[int, socket.socket] = {}
        with listener.socket:
            listener.socket.settimeout(timeout)
            for peer, name in enumerate(names[:rank]):
                link = socket.socket(socket.AF_UNIX)
                link.connect(f"\0{name}")
                link.sendall(_RANK.pack(rank))
                self._links[peer] = link
            while len(self._links) < len(names) - 1:
                link, _ = listener.socket.accept()
                if _user_of(link) != os.geteuid():
                    link.close()  # another user's process has no business here
                    continue
                link.settimeout(timeout)
                (peer,) = _RANK.unpack(link.recv(_RANK.size, socket.MSG_WAITALL))
                self._links[peer] = link
        for link in self._links.values():
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            link.setblocking(False)

    def alltoall(self, data: Bytes, sizes: Sequence[int]) -> tuple[Bytes, list[int]]:
        """Sends consecutive bytes to each rank and receives bytes from each.

        Args:
            data: uint8 [sum(sizes)], the bytes in order of their destination.
            sizes: The number of bytes for each rank.

        Returns:
            The bytes received, uint8 [n], in order of their source; and how many each rank sent.

        Raises:
            OSError: A rank closed its connection, or sent nothing for too long.
        """
        ends = np.cumsum(sizes).tolist()
        messages = {
            peer: _Message(peer, link, data[ends[peer] - sizes[peer] : ends[peer]])
            for peer, link in self._links.items()
        }
        self._advance(messages.values(), until_sent=False)  # all lengths, before the memory for all
        lengths = list(sizes)
        for peer, message in messages.items():
            lengths[peer] = message.length()
        received = _aligned(sum(lengths))
        start = 0
        for source, length in enumerate(lengths):
            if source == self._rank:
                received[start : start + length] = data[ends[source] - length : ends[source]]
            else:
                messages[source].unread = received.data[start : start + length]
            start += length
        self._advance(messages.values(), until_sent=True)
        return received, lengths

    def _advance(self, messages: Collection[_Message], *, until_sent: bool) -> None:
        """Sends and receives until all is read that is to be read; or also all is sent."""
        while True:
            poll, open_ = select.poll(), False
            for message in messages:
                # What can be sent must be, even while reading: another rank may wait for it.
                events = (0 if message.read() else select.POLLIN) | (
                    0 if message.send() else select.POLLOUT
                )
                if events:
                    poll.register(message.link, events)
                    open_ |= until_sent or bool(events & select.POLLIN)
            if not open_:
                return
            if not poll.poll(self._timeout * 1000):
                late = [str(message.peer) for message in messages if message.unread]
                raise TimeoutError(
                    f"rank {' and '.join(late)} sent nothing for {self._timeout:.0f} s"
                )


class _Message:
    """What goes to a rank in one exchange, and what comes from it.

    Attributes:
        peer: The rank.
        link: The connection.
        unread: Memory for what is to be read; first the length of what comes after it.
    """

    def __init__(self, peer: int, link: socket.socket, data: Bytes) -> None:
        self.peer = peer
        self.link = link
        self._unsent = [memoryview(_LENGTH.pack(len(data))), data.data]
        self._length = bytearray(_LENGTH.size)
        self.unread = memoryview(self._length)

    def length(self) -> int:
        """The length of what comes, once it was read."""
        return int(_LENGTH.unpack(self._length)[0])

    def send(self) -> bool:
        """Sends what the connection takes; returns whether that was all."""
        while self._unsent:
            try:
                sent = self.link.sendmsg(self._unsent)
            except BlockingIOError:
                return False
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if self._unsent:
                self._unsent[0] = self._unsent[0][sent:]
        return True

    def read(self) -> bool:
        """Reads what has come; returns whether that was all."""
        while self.unread:
            try:
                read = self.link.recv_into(self.unread)
            except BlockingIOError:
                return False
            if not read:
                raise ConnectionError(f"rank {self.peer} closed its connection")
            self.unread = self.unread[read:]
        return True


def _aligned(size: int) -> Bytes:
    """Memory for bytes, at an address that TensorFlow takes as it is."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _user_of(link: socket.socket) -> int:
    """The user whose process is at the other end."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])
