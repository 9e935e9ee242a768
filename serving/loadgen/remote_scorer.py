"""Scores through a server by gRPC, with Triton's official client.

It has the scorer's `score` alone. It must not know LoadGen.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np

from dlrm.data.batch import FloatArray, IntArray

DENSE, IDS, LOGITS = "dense", "ids", "logits"


class RemoteScorer:
    """A model behind a server of the KServe v2 protocol; threads share its connection.

    Args:
        url: The server's gRPC address, host:port.
        model: The name of the model.

    Raises:
        OSError: The client is not installed, or no server that has the model answers.
    """

    def __init__(self, url: str, model: str) -> None:
        try:
            import tritonclient.grpc as client
        except ImportError as error:
            raise OSError(
                f"expected the package tritonclient, found none ({error}); run `make serve-setup`"
            ) from None
        self._client = client
        self._url, self._model = url, model
        self._server = client.InferenceServerClient(url)
        try:
            ready = self._server.is_model_ready(model)
        except client.InferenceServerException as error:
            raise OSError(
                f"--url={url}: expected a server, found none ({_reason(error)}); start one with "
                "`python3 -m serving serve`"
            ) from None
        if not ready:
            raise OSError(
                f"--url={url}: expected the model {model} to be ready, found that it is not; "
                "name it with --model"
            )

    def score(self, dense: FloatArray, ids: IntArray) -> FloatArray:
        """Returns the logits, float32 [pairs], of one request.

        Raises:
            OSError: The server refused the request or did not answer.
        """
        inputs = []
        for name, values, kind in ((DENSE, dense, "FP32"), (IDS, ids, "INT32")):
            inputs.append(self._client.InferInput(name, list(values.shape), kind))
            inputs[-1].set_data_from_numpy(np.ascontiguousarray(values))
        try:
            answer = self._server.infer(self._model, inputs)
        except self._client.InferenceServerException as error:
            raise OSError(
                f"--url={self._url}: the server refused {len(dense)} pairs: {_reason(error)}"
            ) from None
        logits: FloatArray = answer.as_numpy(LOGITS).reshape(-1)
        return logits

    def __enter__(self) -> RemoteScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
