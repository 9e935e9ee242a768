"""The exchanges between ranks that share a host and compute on its cores.

Horovod looks for work several thousand times a second, and each time all ranks agree over sockets
on what is ready. Where a rank owns a GPU and several cores, that costs nothing. A rank that owns a
single core loses a tenth to a fifth of it. Here, an exchange is an operation in which the ranks
exchange bytes at once (`host_links`), and between exchanges nothing runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed.collective import Collective, wire_bits
from dlrm.distributed.host_links import HostLinks, NamedSocket

# The variables in which launchers state how many processes they started, and how many on this host.
LOCAL_SIZES = {
    "HOROVOD_SIZE": "HOROVOD_LOCAL_SIZE",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_SIZE": "MPI_LOCALNRANKS",
}
# Names what ranks exchange through: `horovod` also where they could do without.
EXCHANGE_VARIABLE = "DLRM_EXCHANGE"


class HostCollective(Collective):
    """The ranks of one host, without GPUs.

    Every exchange is made of all-to-alls, which take place in the order in which a function calls
    them: so at most one thread waits, and a single connection between two ranks suffices.

    Args:
        links: This rank's connections to the others.
        rank: This process, 0 <= rank < size.
        size: Number of ranks.
    """

    def __init__(self, links: HostLinks, rank: int, size: int) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self._links = links
        self._last: tf.Operation | None = None
        self._timeline = ""
        self._events: list[dict[str, Any]] = []

    def mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Averages; each of more than two ranks averages a part of the values for all."""
        wide = tf.float64 if any(t.dtype == tf.float64 for t in tensors) else tf.float32
        flat = tf.concat([tf.cast(tf.reshape(t, [-1]), wide) for t in tensors], 0)  # [n]
        if self.size == 2:
            # Either rank averages all: that takes one message instead of two half as long.
            counts = [0, 0]
            counts[1 - self.rank] = tf.size(flat)
            other, _ = self.alltoall(flat, tf.stack(counts), name)
            means = (flat + other) * 0.5
        else:
            part = -(-tf.size(flat) // self.size)
            padded = tf.pad(flat, [[0, part * self.size - tf.size(flat)]])
            parts, _ = self.alltoall(padded, tf.fill([self.size], part), name)
            mine = tf.reduce_mean(tf.reshape(parts, [self.size, -1]), axis=0)  # [part]
            means = self._gather(mine, f"{name}.means")[: tf.size(flat)]
        means = tf.split(means, [tf.size(t) for t in tensors], num=len(tensors))
        return [tf.cast(tf.reshape(m, tf.shape(t)), t.dtype) for m, t in zip(means, tensors)]

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Adds up the tensors of all ranks on each."""
        gathered = self._gather(tf.reshape(tensor, [-1]), name)
        return tf.reduce_sum(tf.reshape(gathered, [self.size, *tensor.shape]), axis=0)

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchanges rows after all exchanges that were called before in the same function."""

        def exchange(
            rows: NDArray[Any], counts: NDArray[np.int32]
        ) -> tuple[NDArray[Any], NDArray[np.int32]]:
            begin = time.perf_counter()
            row_bytes = rows.itemsize * int(np.prod(rows.shape[1:]))
            sizes = (counts.astype(np.int64) * row_bytes).tolist()
            received, lengths = self._links.alltoall(rows.reshape(-1).view(np.uint8), sizes)
            if self._timeline:
                self._record(name, begin, sum(sizes) - sizes[self.rank])
            return (
                received.view(rows.dtype).reshape(-1, *rows.shape[1:]),
                (np.array(lengths) // max(row_bytes, 1)).astype(np.int32),
            )

        wire = wire_bits(tensor)
        in_graph = not tf.executing_eagerly()
        before = self._last if in_graph else None
        if before is not None and before.graph is not wire.graph:
            before = None  # an exchange of another function, which has ended or not begun
        with tf.control_dependencies([] if before is None else [before]):
            received, received_splits = tf.numpy_function(
                exchange, [wire, splits], [wire.dtype, tf.int32]
            )
        if in_graph:
            self._last = received.op
        received.set_shape([None, *tensor.shape[1:]])
        received_splits.set_shape([self.size])
        return tf.bitcast(received, tensor.dtype), received_splits

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Rank 0 sends one variable after the other."""
        for variable in variables:
            value = tf.reshape(variable, [-1])
            count = tf.size(value) if self.rank == 0 else 0
            values = tf.tile(value, [self.size]) if self.rank == 0 else value[:0]
            received, _ = self.alltoall(values, tf.fill([self.size], count), "broadcast")
            variable.assign(tf.reshape(received, variable.shape))

    def gather_text(self, text: str) -> list[str]:
        """Every rank sends its text to all."""
        data = tf.io.decode_raw(tf.constant(text.encode()), tf.uint8)  # uint8 [bytes]
        counts = tf.fill([self.size], len(data))
        texts, sizes = self.alltoall(tf.tile(data, [self.size]), counts, "text")
        joined, ends = texts.numpy().tobytes(), np.cumsum(sizes)
        return [joined[end - size : end].decode() for size, end in zip(sizes.numpy(), ends)]

    def start_timeline(self, path: str) -> None:
        """Begins to record this rank's exchanges; rank 0 keeps them."""
        self._timeline, self._events = path, []

    def stop_timeline(self) -> None:
        """Writes the file."""
        path, self._timeline = self._timeline, ""
        if path and self.rank == 0:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(self._events, file)

    def _gather(self, flat: tf.Tensor, name: str) -> tf.Tensor:
        """The values [n] of all ranks one behind the other, [n * size]."""
        counts = tf.fill([self.size], tf.size(flat))
        return self.alltoall(tf.tile(flat, [self.size]), counts, name)[0]

    def _record(self, name: str, begin: float, sent: int) -> None:
        """Remembers an exchange that ends now, in the form that Chrome and Perfetto show."""
        seconds = time.perf_counter() - begin
        event = {"name": name, "ph": "X", "pid": self.rank, "tid": 0, "args": {"bytes": sent}}
        self._events.append({**event, "ts": begin * 1e6, "dur": seconds * 1e6})


def on_one_host(environment: Mapping[str, str]) -> bool:
    """Returns whether a launcher says that all its processes run on this host, for its cores."""
    sizes = [(size, local) for size, local in LOCAL_SIZES.items() if size in environment]
    return (
        environment.get(EXCHANGE_VARIABLE) != "horovod"
        and "HOROVOD_TIMELINE" not in environment  # it shows what Horovod exchanges
        and any(environment[size] == environment.get(local) for size, local in sizes)
        and not tf.config.list_physical_devices("GPU")
    )


def connect_host(horovod: Collective, timeout: float, *, wanted: bool) -> Collective:
    """Connects the ranks of one host with each other, if all of them want it.

    Args:
        horovod: The ranks.
        timeout: Seconds that a rank may wait for a message of another rank.
        wanted: Whether this rank wants it.

    Returns:
        The ranks, which exchange without Horovod; or as given.
    """
    listener = NamedSocket() if wanted else None
    names = horovod.gather_text("" if listener is None else listener.name)
    if listener is None or not all(names):
        return horovod
    links = HostLinks(horovod.rank, listener, names, timeout)
    return HostCollective(links, horovod.rank, horovod.size)
