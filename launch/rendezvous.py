"""The store in which Horovod's ranks find each other's addresses: values by path, over HTTP.

Each rank writes where it listens and reads where the others do, until all are connected; later
nobody asks. `horovodrun` has such a store for the ranks that it starts. Independent of who starts
the ranks, and of what they write.
"""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import time
import urllib.request

from launch.processes import end_with_parent

NAME = "/launch/name"  # the path of the store's own name
ATTEMPT_SECONDS, PAUSE_SECONDS = 5.0, 0.2


class RendezvousStore(http.server.ThreadingHTTPServer):
    """Listens on all addresses of this machine.

    Args:
        port: The port to listen at; 0 for any that is free.
        name: What tells this store from those of other jobs.

    Raises:
        OSError: The port is not free.
    """

    request_queue_size = 4096  # all ranks may come at the same moment

    def __init__(self, port: int, name: str) -> None:
        super().__init__(("", port), _Handler)
        self.values = {NAME: name.encode()}

    def serve_beside(self) -> None:
        """Serves from a child of this process, which ends with it, whatever program it becomes.

        Signals are for the ranks: the child ignores those that stop a job.
        """
        parent = os.getpid()
        if os.fork():
            self.socket.close()
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            self.serve_forever()
        os._exit(os.EX_OK)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: RendezvousStore

    def do_GET(self) -> None:
        value = self.server.values.get(self.path)
        self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        self.server.values[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        """Keeps the value: a rank says that it has finished, but others may still read."""
        self._answer(200)

    def _answer(self, status: int, value: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(value)))
        self.end_headers()
        self.wfile.write(value)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


def wait_for_store(address: str, port: int, name: str, seconds: float) -> None:
    """Returns once the store of that name answers.

    Args:
        address: Where it listens.
        port: Its port there.
        name: The name that it must have.
        seconds: How long to wait for an answer.

    Raises:
        ValueError: There is no answer in time, or another store answers.
    """
    # An address of the cluster: what the environment says of proxies is for the internet.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while True:
        try:
            with opener.open(f"http://{address}:{port}{NAME}", timeout=ATTEMPT_SECONDS) as reply:
                found = reply.read().decode(errors="replace")
            break
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"expected rank 0 at {address}:{port} within {seconds:g} s, found: {error}; "
                    "see rank 0's own error, or set HOROVOD_GLOO_RENDEZVOUS_ADDR to an address of "
                    "its node that all nodes reach"
                ) from error
            time.sleep(PAUSE_SECONDS)
    if found != name:
        raise ValueError(
            f"expected rank 0 of {name} at {address}:{port}, found that of {found}; set "
            "HOROVOD_GLOO_RENDEZVOUS_PORT to a port that is free on its node"
        )
