"""The system under test: threads that read and score batches of queries and answer them.

It must not know LoadGen, nor what a sample is: where queries come from and answers go to, and how
samples are read and scored, is passed in.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Callable, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlrm.data.batch import FloatArray
from serving.loadgen.batching import BatchLimit, BatchQueue, Query
from serving.loadgen.timeline import Timeline

_WARM_UP_SECONDS, _WARM_UP_PARTS = 0.5, 5
_CALLS_OF_PART = 10  # at least, for a part of the warm-up to count by itself
_FLOAT_BYTES = np.dtype(np.float32).itemsize

Inputs = TypeVar("Inputs")
_Gathered = TypeVar("_Gathered", covariant=True)


class Answers(NamedTuple):
    """The answers to the samples of a batch.

    Attributes:
        values: float32 [n], contiguous: the answer to one sample after the other.
        sizes: Number of values of each answer, int64 [samples].
    """

    values: FloatArray
    sizes: NDArray[np.int64]


class Library(Protocol[_Gathered]):
    """The samples of a test.

    Attributes:
        sizes: Number of user-item pairs of each sample, int64 [samples].
    """

    sizes: NDArray[np.int64]

    def load(self, samples: Sequence[int]) -> None:
        """Prepares samples for a test, which names no others."""

    def unload(self, samples: Sequence[int]) -> None:
        """Gives back what `load` took."""

    def gather(self, samples: Sequence[int]) -> _Gathered:
        """Returns the inputs of samples that are scored together; for several threads."""


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


class _ReadBatch(NamedTuple, Generic[Inputs]):
    """Queries that are scored together.

    Attributes:
        number: Counts the batches.
        queries: The queries.
        inputs: What their samples consist of.
        taken: When its reading began, in seconds of `time.perf_counter`.
        read: When its reading had ended.
    """

    number: int
    queries: list[Query]
    inputs: Inputs
    taken: float
    read: float


class ScoringSystem(Generic[Inputs]):
    """Scores the samples of a library, in several batches at a time.

    A worker reads its own batches, or readers do so ahead of it. These take queries only while
    fewer than `ahead` batches are read or being read: what is in a batch cannot join a larger one.

    Args:
        library: The samples.
        score: Returns the answers to samples; called by several threads at a time, and should
            release Python's lock.
        complete: Receives the answers of a batch; they lie in memory until it returns.
        failed: Receives the error that ended a thread.
        limit: The largest batch.
        workers: Number of batches that are scored at a time.
        readers: Number of threads that read batches; 0 if workers do so.
        ahead: Most batches that wait for a worker, with readers.
        groups: See `BatchQueue`.
        timeline: Records, for each batch, the spans `total`, `queue` (until its oldest query is
            taken), `collate`, `ready` (until a worker is free), `prediction` and `answer`.
    """

    def __init__(
        self,
        library: Library[Inputs],
        score: Callable[[Inputs], Answers],
        complete: Callable[[Sequence[Answer]], None],
        failed: Callable[[BaseException], None],
        limit: BatchLimit,
        *,
        workers: int,
        readers: int = 0,
        ahead: int = 1,
        groups: NDArray[np.int64] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self._library = library
        self._score = score
        self._complete = complete
        self._failed = failed
        self._limit = limit
        self._queue = BatchQueue(library.sizes, limit, groups)
        self._ready: SimpleQueue[_ReadBatch[Inputs] | None] = SimpleQueue()
        self._slots = threading.Semaphore(ahead)
        self._numbers = itertools.count()
        self._timeline = timeline or Timeline(recording=False)
        self._lock = threading.Lock()
        self._work = Work(0, 0, 0, 0.0)
        self._first_query: float | None = None
        self._readers = self._threads("reading", readers, self._read_ahead)
        batches = self._from_readers if readers else self._own_batches
        self._workers = self._threads("scoring", workers, lambda: self._answer_all(batches()))

    def _threads(self, name: str, count: int, action: Callable[[], None]) -> list[threading.Thread]:
        """Starts threads that hand their error on."""

        def guarded() -> None:
            try:
                action()
            # Whatever it is, the main thread must learn of it: nobody else sees this thread.
            except BaseException as error:
                self._failed(error)

        # Daemons: after an error the process ends without waiting for them.
        threads = [
            threading.Thread(target=guarded, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        return threads

    def issue(self, ids: Iterable[int], samples: Iterable[int]) -> None:
        """Takes queries, as many as there are ids; they are answered by and by."""
        now = time.perf_counter()
        if self._first_query is None:
            self._first_query = now
        self._queue.put(map(Query, ids, samples, itertools.repeat(now)))

    def close(self) -> Work:
        """Answers what was issued, ends the threads and returns what they did."""
        self._queue.close()
        for thread in self._readers:
            thread.join()
        for _ in self._workers:
            self._ready.put(None)
        for thread in self._workers:
            thread.join()
        return self._work

    def _read_ahead(self) -> None:
        while True:
            self._slots.acquire()
            queries = self._queue.take()
            if not queries:
                self._slots.release()  # for the next reader to end too
                return
            self._ready.put(self._read(queries))

    def _from_readers(self) -> Iterator[_ReadBatch[Inputs]]:
        while (batch := self._ready.get()) is not None:
            self._slots.release()
            yield batch

    def _own_batches(self) -> Iterator[_ReadBatch[Inputs]]:
        while queries := self._queue.take():
            yield self._read(queries)

    def _read(self, queries: list[Query]) -> _ReadBatch[Inputs]:
        number, taken = next(self._numbers), time.perf_counter()
        with self._timeline.batch(number):
            self._timeline.waited("queue", queries[0].issued, taken)
            with self._timeline.span("collate"):
                inputs = self._library.gather([query.sample for query in queries])
        return _ReadBatch(number, queries, inputs, taken, time.perf_counter())

    def _answer_all(self, batches: Iterator[_ReadBatch[Inputs]]) -> None:
        for batch in batches:
            with self._timeline.batch(batch.number):
                self._answer(batch)

    def _answer(self, batch: _ReadBatch[Inputs]) -> None:
        start = time.perf_counter()
        self._timeline.waited("ready", batch.read, start)
        with self._timeline.span("prediction"):
            values, sizes = self._score(batch.inputs)
        with self._timeline.span("answer"):
            assert values.flags.c_contiguous
            byte_sizes = _FLOAT_BYTES * sizes
            firsts = values.ctypes.data + np.cumsum(byte_sizes) - byte_sizes
            answers = [
                Answer(query.id, first, size)
                for query, first, size in zip(batch.queries, firsts.tolist(), byte_sizes.tolist())
            ]
            pairs = int(self._library.sizes[[query.sample for query in batch.queries]].sum())
            seconds = time.perf_counter() - start + batch.read - batch.taken
            self._limit.record(pairs, seconds)
            self._complete(answers)
        end = time.perf_counter()
        self._timeline.waited("total", batch.queries[0].issued, end)
        with self._lock:
            done = self._work
            assert self._first_query is not None
            self._work = Work(
                done.batches + 1,
                done.samples + len(batch.queries),
                done.pairs + pairs,
                end - self._first_query,
            )


def measure_rate(
    library: Library[Inputs],
    score: Callable[[Inputs], Answers],
    workers: int,
    max_pairs: int,
    seconds: float = _WARM_UP_SECONDS,
) -> float:
    """Scores the first samples for a moment, which also warms everything up.

    Args:
        library: The samples; none may be loaded.
        score: Returns answers.
        workers: Number of batches at a time.
        max_pairs: Most pairs of a batch; one sample may have more.
        seconds: How long.

    Returns:
        Pairs a second, of all workers together: those of the best part of the warm-up, as other
        work on the machine may have slowed the rest.
    """
    ends = np.cumsum(library.sizes)
    samples = range(max(1, int(np.searchsorted(ends, max_pairs, side="right"))))
    library.load(samples)
    inputs = library.gather(samples)
    library.unload(samples)
    score(inputs)  # not timed: the first call touches memory for the first time
    start = time.perf_counter()
    end = start + seconds

    def repeat(_: int) -> list[float]:
        times = []
        while time.perf_counter() < end:
            score(inputs)
            times.append(time.perf_counter())
        return times

    with ThreadPoolExecutor(workers) as pool:
        times = [one for found in pool.map(repeat, range(workers)) for one in found]
    calls, _ = np.histogram(times, _WARM_UP_PARTS, (start, end))
    best = float(calls.max()) * _WARM_UP_PARTS / seconds
    mean = len(times) / (max(times) - start)
    return float(ends[len(samples) - 1]) * (best if calls.max() >= _CALLS_OF_PART else mean)
