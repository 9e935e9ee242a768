"""The life of a server: new versions, full queues, a stop, ports and files that fail, a kill."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from serving.scorer import Scorer
from tests.support.artifacts import write_artifact
from tests.support.processes import run
from tests.support.served_artifact import (
    NEEDS_TRITON,
    NUM_DENSE,
    QUICK,
    VOCAB_SIZES,
    Setting,
    client_of,
    get,
    samples,
    wait_for_state,
)
from tests.support.servers import ServeCommand

pytestmark = NEEDS_TRITON
SERVING = ("python3", "-m", "serving")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    made = Setting(tmp_path_factory.mktemp("server"))
    with made.server:
        yield made


def load(
    setting: Setting, model: str, known: list[np.ndarray], stop: threading.Event, protocol: str
) -> list[int]:
    """Asks without a pause until told to stop; returns whose logits each answer was."""
    dense, ids = samples(8, seed=8)
    answers = []
    with client_of(setting.server, protocol, model) as client:
        while not stop.is_set():
            found = client.logits(dense=dense, ids=ids)
            (owner,) = (
                n for n, logits in enumerate(known) if np.allclose(found, logits, rtol=0, atol=1e-5)
            )
            answers.append(owner)
    return answers


def test_a_new_version_is_loaded_without_a_lost_request(setting: Setting, tmp_path: Path) -> None:
    dense, ids = samples(8, seed=8)
    artifacts, known = [setting.artifact, tmp_path / "second", tmp_path / "damaged"], []
    write_artifact(artifacts[1], VOCAB_SIZES, num_dense=NUM_DENSE, dictionary=True, seed=2)
    write_artifact(artifacts[2], VOCAB_SIZES, num_dense=NUM_DENSE, dictionary=True, seed=3)
    flip(artifacts[2] / "tables.safetensors", -1)
    for artifact in artifacts[:2]:
        with Scorer.open(artifact) as scorer:
            known.append(scorer.score(dense, ids))

    def add(artifact: Path, *flags: str) -> None:
        command = (*SERVING, "repository", artifact, setting.repository, "--name=changing")
        ended = run([*command, *flags], time_limit=QUICK)
        assert ended.code == 0, ended.output

    wait_for = partial(wait_for_state, setting, "changing")
    add(artifacts[0])
    wait_for(1, "READY")
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loads = [
            pool.submit(load, setting, "changing", known, stop, ("http", "grpc")[worker % 2])
            for worker in range(4)
        ]
        try:
            add(artifacts[1], "--version=2")
            wait_for(2, "READY")
            wait_for(1, "UNAVAILABLE")
            add(artifacts[2], "--no_verify")
            wait_for(3, "damaged")
            # One whose process ends at once. The processes are looked at twice a second.
            (setting.repository / "changing" / "4").mkdir()
            time.sleep(2.5)
        finally:
            stop.set()
            shutil.rmtree(setting.repository / "changing" / "4", ignore_errors=True)
        for answers in (load.result() for load in loads):
            assert answers == sorted(answers), "the old version answered after the new one"
            assert {0, 1} == set(answers)
    wait_for(2, "READY")
    get(f"http://{setting.server.http}/v2/health/ready")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_refused_by_file_and_offset(tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact", VOCAB_SIZES, num_dense=NUM_DENSE)
    flip(tmp_path / "artifact" / "tables.safetensors", -2)
    for name, argument in (("serve", "--http_port=0"), ("repository", tmp_path / "repository")):
        ended = run([*SERVING, name, tmp_path / "artifact", argument], time_limit=QUICK)
        assert ended.code == 1
        assert re.search(r"^error: \S*tables\.safetensors: .*offsets? \d+", ended.output, re.M)
        assert ended.output.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_a_port_in_use_is_refused_in_one_line(setting: Setting) -> None:
    port = setting.server.grpc.split(":")[1]
    ended = run([*SERVING, "serve", setting.artifact, f"--grpc_port={port}"], time_limit=QUICK)
    assert ended.code == 1
    assert ended.output.startswith(f"error: expected --grpc_port={port} to be free")
    assert ended.output.count("\n") == 1


def test_limits_of_the_queue_and_a_clean_stop(setting: Setting, tmp_path: Path) -> None:
    dense, ids = samples(8, seed=9)
    expected = setting.scored(dense, ids)
    # A request waits for a batch that does not fill.
    flags = ["--max_queue_delay_us=2000000", "--preferred_batch_sizes=64", "--max_queue_size=2"]
    flags.append("--request_timeout_ms=30000")
    with ServeCommand(tmp_path, setting.artifact, *flags) as server:
        work = re.search(r"log=(\S+)/", server.text())

        def ask(protocol: str, timeout_us: int | None = None) -> np.ndarray:
            with client_of(server, protocol) as client:
                return client.logits(dense=dense, ids=ids, timeout_us=timeout_us)

        with pytest.raises(ValueError, match="timeout expired"):
            ask("http", timeout_us=50_000)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, protocol) for protocol in ("http", "grpc")]
            time.sleep(0.4)
            for protocol in ("http", "grpc"):
                with pytest.raises(ValueError, match="maximum queue size"):
                    ask(protocol)
            assert not any(future.done() for future in asked)
            assert server.stop() == 0
            for future in asked:
                np.testing.assert_allclose(future.result(1), expected, atol=1e-5)
        assert "stopped; every request that was taken is answered" in server.text()
    assert work is not None
    assert not Path(work[1]).exists()
    assert not shared_memory(server.process.pid)


def shared_memory(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"serving_{pid}_")]


def test_killed_and_started_again(setting: Setting) -> None:
    """The last test, as it ends the server."""
    dense, ids = samples(8, seed=10)
    os.kill(setting.server.pid_of("tritonserver"), signal.SIGKILL)
    assert setting.server.wait() == 1
    assert "error: expected Triton's server to run until SIGTERM" in setting.server.text()
    assert "signal 9" in setting.server.text()
    assert not shared_memory(setting.server.process.pid)
    # The damaged version of the test above: the server says so, and starts without it.
    flags = (setting.artifact, f"--repository={setting.repository}")
    with pytest.raises(AssertionError, match=r"'changing' version 3: .*damaged between offsets 0"):
        ServeCommand(setting.folder, *flags)
    shutil.rmtree(setting.repository / "changing" / "3")
    again = ServeCommand(setting.folder, *flags)
    with again, client_of(again, "grpc") as client:
        found = client.logits(dense=dense, ids=ids)
        np.testing.assert_array_equal(found, setting.scored(dense, ids))
        assert json.loads(get(f"http://{again.http}/v2/models/dlrm"))["versions"] == ["1"]
        os.kill(again.pid_of("triton_python_backend_stub", "/dlrm/"), signal.SIGKILL)
        assert again.wait() == 1
        assert "error: expected the scorer's process to run until SIGTERM" in again.text()
