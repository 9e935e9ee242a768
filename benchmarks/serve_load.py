"""A server under load for minutes: every answer is checked, and its memory is watched.

    python3 -m benchmarks.serve_load ARTIFACT [--minutes N] [--concurrency N] [-- FLAGS of serve]

It starts `python3 -m serving serve` and asks it from this process, over HTTP and over gRPC, with
requests of 1 to 700 samples. Nine in ten are good, and must get the scorer's logits;
the others are malformed and must be refused. It fails on any other answer, or if memory grows.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dlrm import cli

with cli.project_environment():
    import numpy as np
    import psutil
    from numpy.typing import NDArray

    from dlrm.formats.quantities import size_text
    from serving.latency import Latency, latency_table
    from serving.scorer import Scorer
    from serving.triton.client import PROTOCOLS, ScoringClient
    from serving.triton.model_config import LOGIT
    from serving.triton.process import running_server

Inputs = dict[str, NDArray[Any]]

REQUESTS = 64  # distinct good ones
LARGEST = 700  # samples of a request: the most user-item pairs of a query of MLPerf's
MALFORMED_SHARE = 0.1
MEMORY_SECONDS, SAMPLE_SECONDS = 10.0, 0.5
WARM_SHARE = 0.3  # of the time; what is allocated meanwhile is kept for later requests
TOLERANCE = 1e-5  # on some CPUs the last bits depend on what shares a batch
GROWTH = 0.05  # the most that the median may grow from the first half of the rest to the second


class Good(NamedTuple):
    """A request and its answer.

    Attributes:
        inputs: The inputs by name.
        logits: The scorer's logits, float32 [samples].
    """

    inputs: Inputs
    logits: NDArray[np.float32]


class Tally:
    """What all threads saw, under one lock.

    Attributes:
        seconds: The seconds of each good request, by protocol.
        counts: How often each kind of answer came.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS}
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def count(self, kind: str) -> None:
        """Counts an answer."""
        with self.lock:
            self.counts[kind] += 1


def good_requests(artifact: Path, seed: int) -> list[Good]:
    """Random requests of every size with the answers that they must get."""
    rng = np.random.default_rng(seed)
    with Scorer.open(artifact) as scorer:
        shape = scorer.artifact.model
        assert shape.num_dense is not None
        made = []
        for size in np.geomspace(1, LARGEST, REQUESTS).astype(int):
            dense = rng.standard_normal((size, shape.num_dense)).astype(np.float32)
            ids = rng.integers(0, shape.vocab_sizes, (size, len(shape.vocab_sizes)), np.int32)
            made.append(Good({"dense": dense, "ids": ids}, scorer.score(dense, ids)))
        return made


def malformed_requests(good: Good) -> list[tuple[str, Inputs]]:
    """Requests with one fault each, and their names."""
    dense, ids = good.inputs["dense"], good.inputs["ids"]
    nan, high = dense.copy(), ids.copy()
    nan[-1, -1] = np.nan
    high[-1, -1] = np.iinfo(np.int32).max
    many = -(-100_000 // len(ids))
    return [
        ("NaN", {"dense": nan, "ids": ids}),
        ("id out of range", {"dense": dense, "ids": high}),
        ("negative id", {"dense": dense, "ids": -1 - ids}),
        ("wrong dtype", {"dense": dense.astype(np.float64), "ids": ids}),
        ("wrong shape", {"dense": dense, "ids": ids[:, 1:]}),
        ("missing input", {"dense": dense}),
        ("too large", {"dense": np.tile(dense, (many, 1)), "ids": np.tile(ids, (many, 1))}),
    ]


def resident_memory(pid: int) -> dict[str, int]:
    """Bytes of memory that Triton and the processes of its backend have of their own, by name."""
    used: Counter[str] = Counter()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used[child.name()] += child.memory_full_info().uss
    return dict(used)


def lowest_memory(pid: int, seconds: float) -> dict[str, int]:
    """The lowest memory of each process of the server during some seconds: large requests apart."""
    end = time.monotonic() + seconds
    lowest = resident_memory(pid)
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(SAMPLE_SECONDS, left))
        for name, size in resident_memory(pid).items():
            lowest[name] = min(size, lowest.get(name, size))
    return lowest


def ask(worker: int, url: str, protocol: str, good: list[Good], end: float, tally: Tally) -> None:
    """One client: asks without a pause until the time is over."""
    rng = np.random.default_rng([worker, 1])
    malformed = malformed_requests(good[REQUESTS // 2])
    seconds = tally.seconds[protocol]
    with ScoringClient(url, protocol) as client:
        while time.monotonic() < end:
            if rng.random() < MALFORMED_SHARE:
                name, inputs = malformed[rng.integers(len(malformed))]
                try:
                    client.outputs(inputs)
                    tally.count(f"ERROR: answered in spite of: {name}")
                except ValueError:
                    tally.count(f"refused: {name}")
                continue
            request = good[rng.integers(len(good))]
            begin = time.perf_counter()
            try:
                logits = client.outputs(request.inputs)[LOGIT]
            except (ValueError, OSError) as error:
                tally.count(f"ERROR: {error}")
                continue
            seconds.append(time.perf_counter() - begin)
            equal = np.allclose(logits, request.logits, rtol=0, atol=TOLERANCE)
            tally.count("answered" if equal else "ERROR: other logits than the scorer's")


def main() -> int:
    """Runs the load; returns the exit code."""
    return cli.exit_code(_run)


def _run() -> int:
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path, help="folder of an export")
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: 10)")
    parser.add_argument("--concurrency", type=int, default=4, help="clients (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default: 0)")
    parser.add_argument("flags", nargs="*", help="flags of `serving serve`, after --")
    options = parser.parse_args()
    if options.minutes < 1:
        raise ValueError(f"expected --minutes of at least 1, found {options.minutes:g}")
    good = good_requests(options.artifact, options.seed)
    tally = Tally()
    with running_server(options.artifact, options.flags) as server:
        begin = time.monotonic()
        end = begin + 60 * options.minutes
        memory: list[tuple[float, int]] = []
        with ThreadPoolExecutor(options.concurrency) as pool:
            clients = []
            for worker in range(options.concurrency):
                protocol = PROTOCOLS[worker % len(PROTOCOLS)]
                url = server.addresses[protocol]
                clients.append(pool.submit(ask, worker, url, protocol, good, end, tally))
            while time.monotonic() < end:
                used = lowest_memory(server.pid, min(MEMORY_SECONDS, end - time.monotonic()))
                memory.append((time.monotonic() - begin, sum(used.values())))
                parts = "  ".join(f"{name} {size_text(size)}" for name, size in used.items())
                print(f"{memory[-1][0]:6.0f} s  {parts}", flush=True)
            for client in clients:
                client.result()
    elapsed = time.monotonic() - begin
    return _report(tally, memory, elapsed, good)


def _report(tally: Tally, memory: list[tuple[float, int]], elapsed: float, good: list[Good]) -> int:
    """Prints what was seen; the exit code is 1 after an error or if memory grew."""
    for kind, count in sorted(tally.counts.items()):
        print(f"{count:10,}  {kind}")
    mean = round(sum(len(request.logits) for request in good) / len(good))
    print(
        latency_table(
            Latency.of(protocol, mean, seconds, wall_seconds=elapsed)
            for protocol, seconds in tally.seconds.items()
            if seconds
        )
    )
    warm = [used for when, used in memory if when >= WARM_SHARE * elapsed]
    earlier, later = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    before, after = (round(statistics.median(part)) for part in (earlier, later))
    print(f"memory, median: {size_text(before)}, then {size_text(after)}")
    grew = after > before * (1 + GROWTH)
    errors = sum(count for kind, count in tally.counts.items() if kind.startswith("ERROR"))
    print(f"{errors} errors; memory {'grew' if grew else 'did not grow'}")
    return 1 if errors or grew else 0


if __name__ == "__main__":
    sys.exit(main())
