"""Scores through a server by gRPC: the scorer's `score` for several threads at a time.

It must not know LoadGen.
"""

from __future__ import annotations

import contextlib
import threading

import numpy as np

from dlrm.data.batch import FloatArray, IntArray
from serving.id_columns import SampleIds
from serving.triton.client import GRPC, ScoringClient, inputs_of
from serving.triton.model_config import LOGIT


class RemoteScorer:
    """A model behind a server; each thread has a connection of its own. A context that closes them.

    Args:
        url: The server's gRPC address, host:port.
        model: The name of the model.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._of_thread = threading.local()
        self._connections = contextlib.ExitStack()

    def __enter__(self) -> RemoteScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.close()

    def score(
        self, dense: FloatArray, ids: IntArray, weights: FloatArray | None = None
    ) -> FloatArray:
        """Returns the logits, float32 [pairs], of one request.

        Raises:
            OSError: The client is not installed, or the server refused or did not answer.
        """
        try:
            inputs = inputs_of(np.ascontiguousarray(dense), SampleIds(ids, weights))
            return self._client().outputs(inputs)[LOGIT]
        except ConnectionError as error:  # which names the address and the remedy
            raise OSError(f"--url={error}") from None
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OSError(
                f"--url={self._url}: expected logits of {len(dense)} pairs from the model "
                f"{self._model}, found: {reason}"
            ) from None

    def _client(self) -> ScoringClient:
        """The connection of this thread."""
        client: ScoringClient | None = getattr(self._of_thread, "client", None)
        if client is None:
            client = ScoringClient(self._url, GRPC, self._model)
            self._of_thread.client = self._connections.enter_context(client)
        return client
