"""The system under test: worker threads that score batches of queries and answer them.

It must not know LoadGen: where queries come from and answers go to is passed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple

import numpy as np

from dlrm.data.batch import FloatArray, IntArray
from dlrm.metrics import probabilities
from serving.loadgen.batching import BatchLimit, BatchQueue, Query
from serving.loadgen.library import SampleLibrary

Score = Callable[[FloatArray, IntArray], FloatArray]
_WARM_UP_SECONDS, _WARM_UP_PARTS = 0.5, 5
_CALLS_OF_PART = 10  # at least, for a part of the warm-up to count by itself
_FLOAT_BYTES = np.dtype(np.float32).itemsize


class Answer(NamedTuple):
    """Where the answer to a query lies in memory.

    Attributes:
        id: The number of the query.
        address: The first byte.
        size: Number of bytes.
    """

    id: int
    address: int
    size: int


class Work(NamedTuple):
    """What a system has done.

    Attributes:
        batches: Number of batches.
        samples: Number of samples.
        pairs: Number of pairs.
        seconds: Time from the first query to the last answer.
    """

    batches: int
    samples: int
    pairs: int
    seconds: float


class ScoringSystem:
    """Scores the samples of a library, in several batches at a time.

    Args:
        library: The samples.
        score: Returns the logits, float32 [pairs], of dense values and ids; called by several
            threads at a time, and should release Python's lock.
        complete: Receives the answers of a batch; they lie in memory until it returns.
        failed: Receives the error that ended a worker.
        limit: The largest batch.
        workers: Number of batches at a time.
        with_labels: Whether an answer is a pair (prediction, label) for each user-item pair, or
            the prediction alone; both float32.
    """

    def __init__(
        self,
        library: SampleLibrary,
        score: Score,
        complete: Callable[[Sequence[Answer]], None],
        failed: Callable[[BaseException], None],
        limit: BatchLimit,
        *,
        workers: int,
        with_labels: bool = True,
    ) -> None:
        self._library = library
        self._score = score
        self._complete = complete
        self._failed = failed
        self._limit = limit
        self._with_labels = with_labels
        self._queue = BatchQueue(library.sizes, limit)
        self._lock = threading.Lock()
        self._work = Work(0, 0, 0, 0.0)
        self._first_query: float | None = None
        # Daemons: after an error the process ends without waiting for them.
        self._threads = [
            threading.Thread(target=self._serve, name=f"scoring-{worker}", daemon=True)
            for worker in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def issue(self, queries: Iterable[Query]) -> None:
        """Takes queries; they are answered by and by."""
        if self._first_query is None:
            self._first_query = time.perf_counter()
        self._queue.put(queries)

    def close(self) -> Work:
        """Answers what was issued, ends the workers and returns what they did."""
        self._queue.close()
        for thread in self._threads:
            thread.join()
        return self._work

    def _serve(self) -> None:
        try:
            while batch := self._queue.take():
                self._answer(batch)
        # Whatever it is, the main thread must learn of it: nobody else sees this thread.
        except BaseException as error:
            self._failed(error)

    def _answer(self, batch: list[Query]) -> None:
        start = time.perf_counter()
        samples = [query.sample for query in batch]
        pairs = self._library.gather(samples)
        predictions = probabilities(self._score(pairs.dense, pairs.ids))
        results = predictions
        if self._with_labels:
            results = np.stack([predictions, pairs.labels], axis=1)  # [pairs, 2]
        sizes = self._library.sizes[samples]
        pair_bytes = _FLOAT_BYTES * (2 if self._with_labels else 1)
        firsts = results.ctypes.data + (np.cumsum(sizes) - sizes) * pair_bytes
        answers = [
            Answer(query.id, first, size)
            for query, first, size in zip(batch, firsts.tolist(), (sizes * pair_bytes).tolist())
        ]
        self._limit.record(len(predictions), time.perf_counter() - start)
        self._complete(answers)
        with self._lock:
            done = self._work
            assert self._first_query is not None
            self._work = Work(
                done.batches + 1,
                done.samples + len(batch),
                done.pairs + len(predictions),
                time.perf_counter() - self._first_query,
            )


def measure_rate(library: SampleLibrary, score: Score, workers: int, max_pairs: int) -> float:
    """Scores the first samples for a moment, which also warms everything up.

    Args:
        library: The samples; none may be loaded.
        score: Returns logits.
        workers: Number of batches at a time.
        max_pairs: Number of pairs of a batch.

    Returns:
        Pairs a second, of all workers together: those of the best part of the warm-up, as other
        work on the machine may have slowed the rest.
    """
    count = int(np.searchsorted(np.cumsum(library.sizes), max_pairs)) + 1
    samples = range(min(count, len(library.sizes)))
    library.load(samples)
    pairs = library.gather(samples)
    library.unload(samples)
    dense, ids = pairs.dense[:max_pairs], pairs.ids[:max_pairs]
    score(dense, ids)  # not timed: the first call touches memory for the first time
    start = time.perf_counter()
    end = start + _WARM_UP_SECONDS

    def repeat(_: int) -> list[float]:
        times = []
        while time.perf_counter() < end:
            score(dense, ids)
            times.append(time.perf_counter())
        return times

    with ThreadPoolExecutor(workers) as pool:
        times = [one for found in pool.map(repeat, range(workers)) for one in found]
    calls, _ = np.histogram(times, _WARM_UP_PARTS, (start, end))
    best = float(calls.max()) * _WARM_UP_PARTS / _WARM_UP_SECONDS
    mean = len(times) / (max(times) - start)
    return len(dense) * (best if calls.max() >= _CALLS_OF_PART else mean)
