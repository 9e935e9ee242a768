"""The model that Triton's Python backend runs: requests in, the scorer's answers out.

Loaded by the stub process of the backend alone, which provides `triton_python_backend_utils`; it
imports neither TensorFlow nor anything of training.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from dlrm.metrics import probabilities
from serving.scorer import Scorer
from serving.triton.answers import answer
from serving.triton.model_config import HOT_SHARE, LOGIT, PROBABILITY, THREADS, VERIFY
from serving.triton.repository import ARTIFACT

_METRICS_SECONDS = 1.0  # each update of a metric is a call to the server's process

_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_void_p]
_CONSUMED = ctypes.create_string_buffer(b"used_dltensor")


class TritonPythonModel:
    """One instance of the model, with a scorer of its own; the backend looks for this name."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Opens the scorer.

        Args:
            arguments: The model's configuration and the place of its version.

        Raises:
            ValueError, OSError: The artifact is damaged, or cannot be opened as configured.
        """
        parameters = {
            key: value["string_value"]
            for key, value in json.loads(arguments["model_config"])["parameters"].items()
        }
        version = arguments["model_version"]
        self._scorer = Scorer.open(
            Path(arguments["model_repository"]) / version / ARTIFACT,
            hot_share=float(parameters[HOT_SHARE]),
            threads=int(parameters[THREADS]) or None,
            verify=parameters[VERIFY] == "true",
        )
        self._metrics = _ScorerMetrics(self._scorer, arguments["model_name"], version)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers the requests of one batch, in their order."""
        # Through DLPack, as the backend was built for NumPy 1 and misreads the arrays of NumPy 2.
        answers = answer(
            self._scorer,
            [
                {tensor.name(): np.from_dlpack(tensor) for tensor in request.inputs()}
                for request in requests
            ],
        )
        responses = []
        for logits in answers:
            if isinstance(logits, ValueError):
                error = triton.TritonError(str(logits), triton.TritonError.INVALID_ARG)
                responses.append(triton.InferenceResponse(error=error))
                self._metrics.malformed += 1
            else:
                outputs = {LOGIT: logits, PROBABILITY: probabilities(logits)}
                tensors = [_output(name, values) for name, values in outputs.items()]
                responses.append(triton.InferenceResponse(tensors))
        self._metrics.update()
        return responses

    def finalize(self) -> None:
        """Closes the scorer, when the version is unloaded or the server stops."""
        # Before the stub is gone, which metrics tell of their end.
        del self._metrics
        self._scorer.close()


def _output(name: str, values: NDArray[np.float32]) -> Any:
    """An output tensor [samples, 1] of values [samples]."""
    column = np.ascontiguousarray(values).reshape(-1, 1)
    if not column.flags.writeable:
        column = column.copy()
    capsule = column.__dlpack__()
    tensor = triton.Tensor.from_dlpack(name, capsule)
    # The backend gives a used capsule a name of its own, of which NumPy complains on stderr.
    _set_capsule_name(capsule, ctypes.addressof(_CONSUMED))
    return tensor


class _ScorerMetrics:
    """What Triton does not count itself: lookups in memory and from disk, and malformed requests.

    Attributes:
        malformed: Number of malformed requests so far.

    Args:
        scorer: Counts the lookups.
        model: The model's name, a label of each metric.
        version: The model's version, another label.
    """

    def __init__(self, scorer: Scorer, model: str, version: str) -> None:
        self._scorer = scorer
        labels = {"model": model, "version": version}
        lookups = triton.MetricFamily(
            name="dlrm_lookups_total",
            description="Number of rows looked up, hot ones in memory and cold ones on disk",
            kind=triton.MetricFamily.COUNTER,
        )
        malformed = triton.MetricFamily(
            name="dlrm_malformed_requests_total",
            description="Number of requests that the scorer refused",
            kind=triton.MetricFamily.COUNTER,
        )
        self._families = (lookups, malformed)  # which live as long as they are referred to
        self._counters = (
            lookups.Metric(labels={**labels, "rows": "hot"}),
            lookups.Metric(labels={**labels, "rows": "cold"}),
            malformed.Metric(labels=labels),
        )
        self._reported = (0, 0, 0)
        self._next = 0.0
        self.malformed = 0

    def update(self) -> None:
        """Reports the counts to the server, once a second at most."""
        if time.monotonic() < self._next:
            return
        counts = (*self._scorer.lookups(), self.malformed)
        for counter, count, before in zip(self._counters, counts, self._reported):
            if count > before:
                counter.increment(count - before)
        self._reported = counts
        self._next = time.monotonic() + _METRICS_SECONDS
