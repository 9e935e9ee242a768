"""The server as its users meet it: real processes, the official client, bad requests, bad days."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dlrm.formats import packed_ids
from serving.artifact import read_artifact
from serving.scorer import Scorer
from serving.triton.client import ScoringClient, main
from serving.triton.model_config import ModelOptions, saved_model_config
from tests.support.artifacts import write_artifact
from tests.support.processes import run
from tests.support.servers import ServeCommand
from tests.support.tiny_data import write_split

pytestmark = [
    pytest.mark.one_profile,
    pytest.mark.skipif(find_spec("pytriton") is None, reason="needs Triton's server"),
]
SERVING = ("python3", "-m", "serving")
MAX_BATCH = 512
VOCAB_SIZES, NUM_DENSE = (7, 3, 11), 3
FIELDS = packed_ids.plan(VOCAB_SIZES).fields  # all in one word
QUICK = 20.0  # seconds for a command that starts no server


class Setting:
    """An artifact, its reference and the server that has it in a repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifact = folder / "artifact"
        self.reference = write_artifact(
            self.artifact,
            VOCAB_SIZES,
            num_dense=NUM_DENSE,
            row_order=True,
            dictionary=True,
            seed=1,
        )
        self.repository = folder / "repository"
        self.server = ServeCommand(
            folder,
            self.artifact,
            f"--repository={self.repository}",
            f"--max_batch_size={MAX_BATCH}",
            "--max_queue_delay_us=2000",
            "--hot_share=0.5",
        )

    def scored(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The logits of the scorer."""
        with Scorer.open(self.artifact) as scorer:
            return scorer.score(dense, ids)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    made = Setting(tmp_path_factory.mktemp("server"))
    with made.server:
        yield made


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((count, NUM_DENSE)).astype(np.float32)
    return dense, rng.integers(0, VOCAB_SIZES, (count, len(VOCAB_SIZES)), np.int32)


def client_of(server: ServeCommand, protocol: str, model: str = "dlrm") -> ScoringClient:
    return ScoringClient(getattr(server, protocol), protocol, model)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


def test_health_and_description(setting: Setting) -> None:
    base = f"http://{setting.server.http}/v2"
    for path in ("/health/live", "/health/ready", "/models/dlrm/ready"):
        get(base + path)
    described = json.loads(get(f"{base}/models/dlrm"))
    assert described["versions"] == ["1"]
    shapes = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in described["inputs"]}
    assert shapes == {
        "dense": ("FP32", [-1, NUM_DENSE]),
        "ids": ("INT32", [-1, len(VOCAB_SIZES)]),
        "packed_ids": ("INT32", [-1, 1]),
        "raw_dense": ("INT32", [-1, NUM_DENSE]),
        "raw_values": ("INT64", [-1, len(VOCAB_SIZES)]),
    }
    assert [entry["name"] for entry in described["outputs"]] == ["logit", "probability"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_the_scorers_bytes(setting: Setting, protocol: str) -> None:
    with client_of(setting.server, protocol) as client:
        for count in (1, 2, 37, MAX_BATCH):
            dense, ids = samples(count, seed=count)
            found = client.outputs({"dense": dense, "ids": ids})
            np.testing.assert_array_equal(found["logit"], setting.scored(dense, ids))
            exact = setting.reference.logits(dense, ids)
            np.testing.assert_allclose(found["logit"], exact, atol=1e-5)
            np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-exact)), atol=1e-5)
            words = ids @ np.array([1 << field.shift for field in FIELDS], np.int32)[:, None]
            packed = client.logits(dense=dense, packed_ids=words)
            np.testing.assert_array_equal(packed, found["logit"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_raw_values_are_looked_up_in_the_dictionary(setting: Setting, protocol: str) -> None:
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 100, (5, NUM_DENSE), np.int32)
    known = [list(values) for values in setting.reference.dictionaries]
    values = np.array([[rng.choice(column) for column in known] for _ in range(5)], np.int64)
    values[0] = -1  # missing
    values[1] += 1  # most likely unknown
    exact = setting.reference.logits(np.log(raw + 1.0), setting.reference.ids_of(values))
    with client_of(setting.server, protocol) as client:
        found = client.logits(raw_dense=raw, raw_values=values)
    np.testing.assert_allclose(found, exact, atol=1e-5)


def counters(setting: Setting, model: str = "dlrm") -> dict[str, float]:
    """The model's counters of the metrics in Prometheus' text format, summed over labels."""
    found: dict[str, float] = {}
    for line in get(setting.server.metrics).splitlines():
        if match := re.fullmatch(rf'(\w+)\{{.*model="{model}".*\}} (\S+)', line):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def test_requests_that_come_together_are_scored_together(setting: Setting) -> None:
    before = counters(setting)

    def ask(worker: int) -> None:
        with client_of(setting.server, ("http", "grpc")[worker % 2]) as client:
            for turn in range(10):
                dense, ids = samples(1 + worker, seed=100 * worker + turn)
                bad = ids.copy()
                bad[-1, 1] = VOCAB_SIZES[1]
                if worker % 4 == 3:  # in the same batches as good ones
                    with pytest.raises(ValueError, match=f"sample {worker}, table 1.*found 3"):
                        client.logits(dense=dense, ids=bad)
                else:
                    found = client.logits(dense=dense, ids=ids)
                    np.testing.assert_allclose(found, setting.scored(dense, ids), atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    after = counters(setting)
    # Triton counts what the model refuses as answered, too.
    asked = after["nv_inference_request_success"] - before["nv_inference_request_success"]
    executed = after["nv_inference_exec_count"] - before["nv_inference_exec_count"]
    assert asked == 80
    assert 0 < executed < 80, "one by one"


def test_the_metrics_count_samples_lookups_and_malformed_requests(setting: Setting) -> None:
    dense, ids = samples(9, seed=1)
    with client_of(setting.server, "http") as client:

        def totals() -> dict[str, float]:
            time.sleep(1.1)  # the scorer's counts are reported once a second
            client.logits(dense=dense, ids=ids)
            return counters(setting)

        before = totals()
        for rows in ("hot", "cold"):
            assert re.search(rf'lookups_total.*"{rows}".* [1-9]', get(setting.server.metrics))
        with pytest.raises(ValueError, match="table"):
            client.logits(dense=dense, ids=ids - 100)
        after = totals()
    differences = {name: after[name] - before[name] for name in after}
    assert differences["nv_inference_request_success"] == 2
    assert differences["dlrm_lookups_total"] == ids.size
    assert differences["dlrm_malformed_requests_total"] == 1


def wait_for_state(setting: Setting, model: str, version: int, expected: str) -> None:
    """Waits until the server says of a version that it is in a state, or why it is not."""
    end = time.monotonic() + QUICK
    while True:
        url = f"http://{setting.server.http}/v2/repository/index"
        with urllib.request.urlopen(urllib.request.Request(url, data=b""), timeout=10) as reply:
            entries = json.load(reply)
        states = [
            f"{entry['state']} {entry.get('reason', '')}"
            for entry in entries
            if (entry["name"], entry.get("version")) == (model, str(version))
        ]
        if any(expected in state for state in states):
            return
        assert time.monotonic() < end, states
        time.sleep(0.05)


def malformed() -> dict[str, tuple[dict[str, np.ndarray], str]]:
    dense, ids = samples(4, seed=4)
    nan, high = dense.copy(), ids.copy()
    nan[2, 1] = np.nan
    high[3, 2] = VOCAB_SIZES[2]
    many_dense, many_ids = samples(MAX_BATCH + 1, seed=5)
    good = {"dense": dense, "ids": ids}
    return {
        "too large": ({"dense": many_dense, "ids": many_ids}, f"batch-size must be <= {MAX_BATCH}"),
        "id too high": ({**good, "ids": high}, "sample 3, table 2.*11"),
        "negative id": ({**good, "ids": ids - 99}, "sample 0, table 0"),
        "NaN": ({**good, "dense": nan}, "sample 2, dense column 1.*nan"),
        "wrong dtype": ({**good, "dense": dense.astype(np.float64)}, "'FP64'.*expects 'FP32'"),
        "wrong shape": ({**good, "ids": ids[:, 1:]}, r"shape for input 'ids'.*\[-1,3\], got \[4,2"),
        "no batch": ({"dense": dense[0], "ids": ids[0]}, "unexpected shape for input"),
        "unequal counts": ({**good, "ids": ids[1:]}, "batch size does not match"),
        "no samples": ({"dense": dense[:0], "ids": ids[:0]}, "byte size mismatch"),
        "missing input": ({"dense": dense}, "expected the inputs dense and ids, or .*found dense$"),
        "two forms": ({**good, "packed_ids": ids[:, :1]}, "found dense, ids, packed_ids"),
        "unknown input": ({**good, "label": ids}, "unexpected inference input 'label'"),
    }


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("kind", malformed())
def test_a_malformed_request_gets_a_clear_error_and_the_next_is_served(
    setting: Setting, protocol: str, kind: str
) -> None:
    inputs, message = malformed()[kind]
    with client_of(setting.server, protocol) as client:
        with pytest.raises(ValueError, match=message):
            client.outputs(inputs)
        dense, ids = samples(2, seed=6)
        found = client.logits(dense=dense, ids=ids)
    np.testing.assert_array_equal(found, setting.scored(dense, ids))


def test_the_configuration_for_the_tensorflow_backend_is_read(
    setting: Setting, tmp_path: Path
) -> None:
    """There is no such backend here; a mistake in the configuration would be named before that."""
    model = setting.repository / "saved"
    (model / "1" / "model.savedmodel").mkdir(parents=True)
    shape = read_artifact(setting.artifact).model
    text = saved_model_config("saved", shape, ModelOptions(max_queue_size=9))
    (model / "config.pbtxt").write_text(text)
    wait_for_state(setting, "saved", 1, "unable to find backend library for backend 'tensorflow'")
    shutil.rmtree(model)


def test_what_is_no_request_gets_an_error(setting: Setting) -> None:
    for body in (b"", b"{", b"\0" * 1000, b'{"inputs": 7}'):
        request = urllib.request.Request(
            f"http://{setting.server.http}/v2/models/dlrm/infer", data=body
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert "error" in json.loads(caught.value.read())
    host, port = setting.server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
    get(f"http://{setting.server.http}/v2/health/ready")


def test_the_client_program_compares_with_the_scorer(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, ids = samples(50, seed=7)
    data = write_split(
        tmp_path / "test", np.zeros(50, np.float32), dense, ids, VOCAB_SIZES, dense_log=False
    )
    for protocol, more in (("http", ["--batch_size=7"]), ("grpc", ["--packed"])):
        flags = [f"--url={getattr(setting.server, protocol)}", f"--data={data}", *more]
        assert main([*flags, f"--protocol={protocol}", f"--artifact={setting.artifact}"]) == 0
        printed = capsys.readouterr().out
        assert "50 of 50 are the scorer's bit for bit" in printed
        assert "p99" in printed
        assert main(["--url=127.0.0.1:1", f"--data={data}", f"--protocol={protocol}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: 127.0.0.1:1: expected a server, found: ")
        assert error.count("\n") == 1


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
