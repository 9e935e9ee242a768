"""Results of slow work, in order, worked at by threads ahead of their use.

What the work is is its caller's concern.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Task], Result], tasks: Iterable[Task], *, lookahead: int, readers: int = 1
) -> Generator[Result, None, None]:
    """Yields the result of each task; errors of `read` are raised here, in the consumer's thread.

    Args:
        read: Does the work of a task; called in the threads.
        tasks: The tasks, in order; taken from here as they are due.
        lookahead: Number of tasks that are begun before their result is asked for.
        readers: Number of threads; each does whole tasks.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="dataset")
    try:
        for task in tasks:
            if len(pending) > lookahead:
                yield pending.popleft().result()
            pending.append(pool.submit(read, task))
        while pending:
            yield pending.popleft().result()
    finally:
        # Also reached when the consumer stops early: the generator is closed or collected.
        pool.shutdown(wait=True, cancel_futures=True)
