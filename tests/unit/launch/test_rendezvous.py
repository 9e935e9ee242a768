"""The store keeps what ranks write, and a rank takes no other job's store for its own."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from launch.rendezvous import RendezvousStore, wait_for_store


@pytest.fixture
def store() -> Iterator[RendezvousStore]:
    with RendezvousStore(0, "job 1, step 0") as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        yield store
        store.shutdown()
        thread.join()


def ask(store: RendezvousStore, method: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{store.server_port}{path}", data=body, method=method
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read()


def test_a_value_stays_until_the_end(store: RendezvousStore) -> None:
    value = bytes(range(256)) * 40
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(store, "GET", "/global/1")
    assert ask(store, "PUT", "/global/1", value) == b""
    assert ask(store, "DELETE", "/global/1") == b""  # this rank has finished, others read on
    assert ask(store, "GET", "/global/1") == value
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(store, "GET", "/local_n1/1")


def test_only_the_own_store_is_accepted(store: RendezvousStore) -> None:
    wait_for_store("127.0.0.1", store.server_port, "job 1, step 0", 10)
    with pytest.raises(ValueError, match=r"expected rank 0 of job 2, step 0 at .* that of job 1,"):
        wait_for_store("127.0.0.1", store.server_port, "job 2, step 0", 10)


def test_nobody_there_is_one_line_that_says_where() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        port = unused.getsockname()[1]
        with pytest.raises(ValueError, match=rf"expected rank 0 at 127\.0\.0\.1:{port} within 0.5"):
            wait_for_store("127.0.0.1", port, "job 1, step 0", 0.5)
