"""One rank that uses every exchange once: collective.py FOLDER.

FOLDER gets a file RANK.json with what this rank received. Without Horovod, it also gets a file
timeline.json with rank 0's first exchanges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.distributed.connect import connect
from dlrm.distributed.host_collective import HostCollective

BIG = 2**53 + 1  # an int64 that float64 cannot hold


def error_of(action: Callable[[], Any]) -> str:
    """The message of the ValueError that the action raises."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return "no error"


def fail_on_rank_1(rank: int) -> None:
    """As a rank whose file is cut."""
    if rank == 1:
        raise OSError("label.bin: expected 8 bytes, found 4")


def exchange_all(collective: Collective, folder: str) -> dict[str, Any]:
    """Uses every method of the collective; returns what this rank received."""
    rank, size = collective.rank, collective.size
    records = isinstance(collective, HostCollective)  # Horovod must be told before it starts
    if records:
        collective.start_timeline(f"{folder}/timeline.json")
    means = collective.mean([tf.constant([1.0, 2.0]) * rank, tf.constant(4.0 * rank)], "mean")
    # Rank r sends r + 1 rows to rank 0 and a single row to each other rank.
    splits = tf.constant([rank + 1] + [1] * (size - 1))
    rows = tf.cast(tf.fill([rank + size, 2], 10 * rank), tf.bfloat16)
    received, counts = collective.alltoall(rows, splits, "rows")
    if records:
        collective.stop_timeline()
    variable = tf.Variable([7.0 + rank])
    collective.broadcast([variable])
    return {
        "kind": type(collective).__name__,
        "rank": rank,
        "size": size,
        "means": [mean.numpy().tolist() for mean in means],
        "sum": int(collective.sum(tf.constant(BIG + rank, tf.int64), "sum")),
        "rows": tf.cast(received, tf.int32).numpy()[:, 0].tolist(),
        "counts": counts.numpy().tolist(),
        "type": received.dtype.name,
        "broadcast": variable.numpy().tolist(),
        "texts": collective.gather_text("é" * rank),
        "together": error_of(lambda: collective.together(lambda: fail_on_rank_1(rank))),
        "agree": error_of(lambda: collective.agree("seed", rank)),
    }


if __name__ == "__main__":
    ranks = connect()
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(exchange_all(ranks, sys.argv[1])))
