"""The server as its users meet it: real processes, the official client, bad requests."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dlrm.formats import packed_ids
from serving.artifact import read_artifact
from serving.triton.client import main
from serving.triton.model_config import ModelOptions, saved_model_config
from tests.support.served_artifact import (
    MAX_BATCH,
    NEEDS_TRITON,
    NUM_DENSE,
    VOCAB_SIZES,
    Setting,
    client_of,
    get,
    samples,
    wait_for_state,
)
from tests.support.tiny_data import write_split

pytestmark = NEEDS_TRITON
FIELDS = packed_ids.plan(VOCAB_SIZES).fields  # all in one word


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    made = Setting(tmp_path_factory.mktemp("server"))
    with made.server:
        yield made


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
