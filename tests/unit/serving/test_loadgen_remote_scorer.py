"""Scores through gRPC, from a stand-in that speaks the protocol of the real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.loadgen.remote_scorer import RemoteScorer

grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

pytestmark = pytest.mark.one_profile
MOST = 1000
ONE = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int32)


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[name-defined]
    """Answers with the sum of the dense values plus the first id; refuses large requests."""

    def ModelInfer(self, request, context):
        shapes = {item.name: list(item.shape) for item in request.inputs}
        types = {item.name: item.datatype for item in request.inputs}
        assert types == {"dense": "FP32", "ids": "INT32"}
        if request.model_name != "dlrm":
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.model_name}")
        raw = dict(zip((item.name for item in request.inputs), request.raw_input_contents))
        dense = np.frombuffer(raw["dense"], np.float32).reshape(shapes["dense"])
        ids = np.frombuffer(raw["ids"], np.int32).reshape(shapes["ids"])
        if len(dense) > MOST:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected {MOST} at most")
        logits = (dense.sum(axis=1) + ids[:, 0]).astype(np.float32)
        answer = service_pb2.ModelInferResponse(model_name="dlrm")
        for name, values in (("logit", logits), ("probability", 1 / (1 + np.exp(-logits)))):
            output = answer.outputs.add()
            output.name, output.datatype = name, "FP32"
            output.shape.extend([len(values), 1])
            answer.raw_output_contents.append(values.tobytes())
        return answer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_several_threads_get_their_own_logits(url: str) -> None:
    generator = np.random.default_rng(2)
    dense = generator.random((64, 5, 3), np.float32)
    ids = generator.integers(0, 9, (64, 5, 2), dtype=np.int32)
    with RemoteScorer(url, "dlrm") as scorer, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(scorer.score, dense, ids))
    np.testing.assert_allclose(found, dense.sum(axis=2) + ids[:, :, 0], rtol=1e-6)
    assert found[0].shape == (5,)


def test_parts_of_larger_arrays_can_be_sent(url: str) -> None:
    dense = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    ids = np.arange(16, dtype=np.int32).reshape(4, 4)[:, 1:3]
    with RemoteScorer(url, "dlrm") as scorer:
        np.testing.assert_array_equal(scorer.score(dense, ids), dense.sum(axis=1) + ids[:, 0])


def test_a_refused_request_is_reported_in_one_line(url: str) -> None:
    size = MOST + 1
    message = f"expected logits of {size} pairs .*expected {MOST} at most"
    with RemoteScorer(url, "dlrm") as scorer, pytest.raises(OSError, match=message) as error:
        scorer.score(np.zeros((size, 3), np.float32), np.zeros((size, 2), np.int32))
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_there_is_named(url: str) -> None:
    with RemoteScorer(url, "other") as scorer, pytest.raises(OSError, match="unknown model other"):
        scorer.score(*ONE)


def test_a_server_that_is_not_there_is_named() -> None:
    url = "127.0.0.1:9"
    with RemoteScorer(url, "dlrm") as scorer, pytest.raises(OSError, match=f"--url={url}: "):
        scorer.score(*ONE)
