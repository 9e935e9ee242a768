"""The exchanges between ranks: through Horovod, or none in a single process.

The only module that imports Horovod. It exchanges tensors and text, whatever they mean. A rank is
one process; `size` of them run the same program. All ranks must call every method, and in the same
order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Callable, TypeVar

import tensorflow as tf

T = TypeVar("T")

CYCLE_TIME = 0.2  # milliseconds: at Horovod's default of 1, its waits are a tenth of a short step

DYNAMIC_TIMELINE = "DYNAMIC"  # Horovod's word for a timeline that starts and stops when told to


class Collective:
    """A single process, in which every exchange is the identity.

    Attributes:
        rank: This process, 0 <= rank < size.
        size: Number of processes.
        local_rank: This process among those of its machine, 0 <= local_rank < local_size.
        local_size: Number of processes on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Averages float tensors over the ranks, in one message.

        Args:
            tensors: Tensors of any shapes and float types, which are the same on every rank.
            name: The name of the exchange: the same on every rank, unique among those under way.

        Returns:
            The element-wise mean over the ranks of each tensor, of its shape and type.
        """
        return list(tensors)

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Adds up a tensor over the ranks; integers stay exact.

        Args:
            tensor: A tensor of any shape and numeric type, which are the same on every rank.
            name: The name of the exchange: the same on every rank, unique among those under way.

        Returns:
            The element-wise sum over the ranks, of the tensor's shape and type.
        """
        return tensor

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sends consecutive rows to each rank and receives rows from each.

        Args:
            tensor: [sum(splits), ...], the rows in order of their destination.
            splits: int32 [size], the number of rows for each rank.
            name: The name of the exchange: the same on every rank, unique among those under way.

        Returns:
            [sum(received), ...], the received rows in order of their source; and int32 [size], the
            number of rows received from each rank.
        """
        return tensor, splits

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Overwrites the variables with their values on rank 0.

        Args:
            variables: Variables of any shapes and types, which are the same on every rank.
        """

    def gather_text(self, text: str) -> list[str]:
        """Returns every rank's text, in rank order, on every rank."""
        return [text]

    def start_timeline(self, path: str) -> None:
        """Begins to record the exchanges; rank 0 writes the file.

        Args:
            path: The file, in the form that Chrome and Perfetto show.
        """

    def stop_timeline(self) -> None:
        """Ends what `start_timeline` began."""

    def together(self, action: Callable[[], T]) -> T:
        """Runs `action` on every rank, and fails on all of them if it fails on one.

        Without this, a rank that stops at a bad file leaves the others waiting for it.

        Args:
            action: What to run; it must not use the collective.

        Returns:
            This rank's result of `action`.

        Raises:
            ValueError: The action raised ValueError or OSError on a rank; raised on every rank with
                the message of the first such rank.
        """
        result, problem = None, ""
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = str(error) or repr(error)
        for rank, found in enumerate(self.gather_text(problem)):
            if found:
                raise ValueError(found if self.size == 1 else f"rank {rank}: {found}")
        return result  # type: ignore[return-value]

    def agree(self, what: str, value: object) -> None:
        """Checks that all ranks hold the same value.

        Args:
            what: The name of the value for the message.
            value: This rank's value; compared by its `repr`.

        Raises:
            ValueError: The values differ; raised on every rank, naming the first two.
        """
        values = self.gather_text(repr(value))
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"{what} must be the same on every rank, found {values[0]} on rank 0 and "
                    f"{other} on rank {rank}; give every rank the same flags and files"
                )


class HorovodCollective(Collective):
    """The ranks that `horovodrun` or MPI started; they exchange over Gloo, NCCL or MPI.

    Args:
        timeout: Seconds that Gloo waits for a message of another rank.
        timeline: Whether `start_timeline` may be called.
        cycle_time: Milliseconds between two times at which Horovod looks for work. An exchange
            waits for several of them.
    """

    def __init__(
        self, timeout: float, *, timeline: bool = False, cycle_time: float = CYCLE_TIME
    ) -> None:
        import horovod.tensorflow as hvd

        # The watchdog finds a rank that dies or hangs sooner, and names it; a rank that is merely
        # late must not end the job.
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(timeout)))
        os.environ.setdefault("HOROVOD_CYCLE_TIME", str(cycle_time))
        if timeline:
            os.environ.setdefault("HOROVOD_TIMELINE", DYNAMIC_TIMELINE)
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Averages in one grouped all-reduce."""
        return self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Average, name=name)

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Adds up in one all-reduce."""
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name=name)

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchanges rows in one all-to-all."""
        wire = wire_bits(tensor)
        received, received_splits = self._hvd.alltoall(wire, splits=splits, name=name)
        return tf.bitcast(received, tensor.dtype), received_splits

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Broadcasts one variable after the other."""
        for index, variable in enumerate(variables):
            variable.assign(self._hvd.broadcast(variable, root_rank=0, name=f"broadcast.{index}"))

    def start_timeline(self, path: str) -> None:
        """Starts Horovod's timeline, unless the user has it record the whole run."""
        if os.environ["HOROVOD_TIMELINE"] == DYNAMIC_TIMELINE:
            self._hvd.start_timeline(path)

    def stop_timeline(self) -> None:
        """Stops Horovod's timeline; Horovod may have ended already, by an error that says more."""
        if os.environ["HOROVOD_TIMELINE"] == DYNAMIC_TIMELINE:
            with contextlib.suppress(ValueError):
                self._hvd.stop_timeline()

    def gather_text(self, text: str) -> list[str]:
        """Gathers the lengths of the texts, then their bytes."""
        data = tf.io.decode_raw(tf.constant(text.encode()), tf.uint8)  # uint8 [bytes]
        length = tf.constant([len(data)], tf.int32)
        sizes = self._hvd.allgather(length, name="text.sizes").numpy()  # int32 [size]
        joined = self._hvd.allgather(data, name="text").numpy().tobytes()  # sum(sizes) bytes
        ends = sizes.cumsum()
        return [joined[end - size : end].decode() for size, end in zip(sizes, ends)]


def wire_bits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns bfloat16 values, which no exchange knows, as uint16; others as they are."""
    return tf.bitcast(tensor, tf.uint16) if tensor.dtype == tf.bfloat16 else tensor


def exchanges() -> list[str]:
    """Returns which of NCCL, Gloo and MPI Horovod was built with.

    Raises:
        ImportError: Horovod is not installed.
    """
    import horovod.tensorflow as hvd

    built = {"NCCL": hvd.nccl_built(), "Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built()}
    return [name for name, available in built.items() if available]
