"""A client of the server: sends the samples of a split folder, with Triton's own client library.

    python3 -m serving.triton.client --url=127.0.0.1:8000 --data=build/demo/test --samples=1000

It shows how to ask the server; a program of one's own needs little more than `ScoringClient`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm.data import open_split
    from serving.id_columns import IdColumns, SampleIds
    from serving.triton.model_config import (
        DENSE,
        IDS,
        LOGIT,
        PACKED_IDS,
        PROBABILITY,
        WEIGHTS,
    )

HTTP, GRPC = PROTOCOLS = ("http", "grpc")


class ScoringClient:
    """A connection to a server; a context that closes it. Not to be shared by threads.

    Args:
        url: The address of the server for the protocol, such as 127.0.0.1:8000.
        protocol: `http` or `grpc`.
        model: The name of the model.
        version: The version to ask; empty for the newest one.

    Raises:
        ValueError: The address is a URL with a scheme.
        OSError: The client library is not installed.
    """

    def __init__(
        self, url: str, protocol: str = HTTP, model: str = "dlrm", version: str = ""
    ) -> None:
        try:
            self._library = importlib.import_module(f"tritonclient.{protocol}")
        except ModuleNotFoundError as error:
            raise OSError(
                f"expected Triton's client library, found no package {error.name}; run "
                "`make serve-setup` and use .venv/bin/python3"
            ) from None
        if "://" in url:
            raise ValueError(f"{url}: expected an address like 127.0.0.1:8000, found one with ://")
        self._client = self._library.InferenceServerClient(url)
        self._url, self._model, self._version = url, model, version

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def logits(
        self, *, timeout_us: int | None = None, **inputs: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Asks for the logits of some samples.

        Args:
            timeout_us: How long the request may wait in the server's queue, in microseconds; None
                leaves it to the server.
            inputs: `dense` float32 [samples, columns] with `ids` int32 [samples, tables], or with
                `packed_ids` int32 [samples, words]; or `raw_dense` int32 and `raw_values` int64.
                Of a model with bags, ids and values have the columns of `IdColumns`, and `weights`
                float32 too where it takes weights.

        Returns:
            The logits, float32 [samples].

        Raises:
            ValueError: The server refuses the request.
            OSError: There is no server, or it went away.
        """
        return self.outputs(inputs, timeout_us)[LOGIT]

    def outputs(
        self, inputs: Mapping[str, NDArray[Any]], timeout_us: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Asks for all outputs, as `logits` for one; returns them by name, float32 [samples]."""
        from tritonclient.utils import InferenceServerException, np_to_triton_dtype

        tensors = []
        for name, values in inputs.items():
            kind = np_to_triton_dtype(values.dtype)
            tensors.append(self._library.InferInput(name, values.shape, kind))
            tensors[-1].set_data_from_numpy(values)
        try:
            result = self._client.infer(self._model, tensors, self._version, timeout=timeout_us)
        except InferenceServerException as error:
            if "failed to connect" in error.message():
                raise ConnectionError(self._no_server(error.message())) from None
            raise ValueError(error.message()) from None
        except ConnectionRefusedError as error:
            raise ConnectionError(self._no_server(error.strerror or "")) from None
        return {name: result.as_numpy(name)[:, 0] for name in (LOGIT, PROBABILITY)}

    def _no_server(self, reason: str) -> str:
        return (
            f"{self._url}: expected a server, found: {reason}; start one with "
            "`python3 -m serving serve ARTIFACT`"
        )


def inputs_of(dense: NDArray[Any], ids: SampleIds) -> dict[str, NDArray[Any]]:
    """The inputs of a request by name, from dense features [B, D] and ids [B, C]."""
    inputs = {DENSE: dense, IDS: np.ascontiguousarray(ids.ids)}
    return inputs if ids.weights is None else {**inputs, WEIGHTS: ids.weights}


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python3 -m serving.triton.client",
        description="Send the samples of a split folder to a server and print logits and latency.",
    )
    flag = parser.add_argument
    flag("--url", default="127.0.0.1:8000", help="address for the protocol (default: %(default)s)")
    flag("--protocol", choices=PROTOCOLS, default=HTTP, help="(default: %(default)s)")
    flag("--model", default="dlrm", help="name of the model (default: %(default)s)")
    flag("--data", type=Path, required=True, metavar="DIR", help="split folder, such as DATA/test")
    flag("--samples", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    flag("--batch_size", type=int, default=1, metavar="N", help="samples of a request (default: 1)")
    flag("--artifact", type=Path, metavar="DIR", help="compare with the scorer on this artifact")
    flag("--packed", action="store_true", help="send packed ids; needs --artifact, for the packing")
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    if flags.packed and flags.artifact is None:
        raise ValueError("expected --artifact with --packed, found none; name it")
    for name in ("samples", "batch_size"):
        if getattr(flags, name) < 1:
            raise ValueError(f"expected --{name} of at least 1, found {getattr(flags, name)}")
    source = open_split(flags.data, per_category=False)
    dense, found_ids, _ = source.read(0, min(flags.samples, source.num_samples))
    ids = IdColumns.of_data(len(source.vocab_sizes), source.bag_layout).lay_out(found_ids)
    if not len(dense):
        raise ValueError(f"{flags.data}: expected samples, found none; name another split folder")
    packing = None
    if flags.packed:
        from serving.artifact import read_artifact

        packing = read_artifact(flags.artifact).packing
    logits, seconds = [], []
    with ScoringClient(flags.url, flags.protocol, flags.model) as client:
        for start in range(0, len(dense), flags.batch_size):
            part = slice(start, start + flags.batch_size)
            inputs = inputs_of(dense[part], ids.rows(part))
            if packing is not None:
                inputs[PACKED_IDS] = packing.pack(inputs.pop(IDS))
            begin = time.perf_counter()
            logits.append(client.outputs(inputs)[LOGIT])
            seconds.append(time.perf_counter() - begin)
    found = np.concatenate(logits)
    print(
        f"{len(found)} logits from {found.min():.4f} to {found.max():.4f}, mean {found.mean():.4f}"
    )
    p50, p99 = np.percentile(np.multiply(seconds, 1e3), (50, 99))
    print(
        f"{flags.protocol}, {len(seconds)} requests of {flags.batch_size}: "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {len(found) / sum(seconds):,.0f} samples/s"
    )
    if flags.artifact is not None:
        return _compare(flags.artifact, dense, ids, found, flags.batch_size)
    return 0


def _compare(
    folder: Path, dense: NDArray[Any], ids: SampleIds, found: NDArray[np.float32], size: int
) -> int:
    """Says whether the server's logits are the scorer's; the exit code is 1 where they are not."""
    from serving.scorer import Scorer

    parts = [slice(start, start + size) for start in range(0, len(dense), size)]
    with Scorer.open(folder) as scorer:
        answers = [scorer.score(dense[part], *ids.rows(part)) for part in parts]
    expected = np.concatenate(answers)
    equal = int((found == expected).sum())
    largest = float(np.abs(found - expected).max())
    print(f"{equal} of {len(found)} are the scorer's bit for bit; largest difference {largest:.1e}")
    return 0 if equal == len(found) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
