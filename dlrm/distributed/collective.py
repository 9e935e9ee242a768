"""Everything that ranks say to each other: one process alone, or Horovod.

The only module that imports Horovod. It knows tensors and text, nothing of models, tables or data.
A rank is one process, `size` of them run the same program; every method must be called by all
ranks in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Callable, TypeVar

import tensorflow as tf

T = TypeVar("T")

# What each launcher sets to the number of processes it started. Slurm's SLURM_NTASKS is not used:
# it is also set in a plain shell inside an allocation.
SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


class Collective:
    """One process alone: every exchange is the identity.

    Attributes:
        rank: this process, 0 <= rank < size.
        size: number of processes.
        local_rank: this process among those of its machine.
        local_size: number of processes on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Element-wise mean over ranks of several float tensors, exchanged as one message."""
        return list(tensors)

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Element-wise sum over ranks; integers stay exact."""
        return tensor

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sends a run of rows to each rank and receives one from each.

        Args:
            tensor: [sum(splits), ...], rows in order of their destination.
            splits: int32 [size], how many rows go to each rank.
            name: the same on every rank, unique among exchanges under way.

        Returns:
            The received rows in order of their source, and int32 [size], how many came from each.
        """
        return tensor, splits

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Overwrites the variables with those of rank 0."""

    def gather_text(self, text: str) -> list[str]:
        """Every rank's text, in rank order, on every rank."""
        return [text]

    def together(self, action: Callable[[], T]) -> T:
        """Runs `action` on every rank and fails on all of them if it failed on one.

        Without this, a rank that stops on a bad file leaves the others waiting for it.

        Args:
            action: must not use the collective.

        Raises:
            ValueError: on every rank, with the message of the first rank that failed.
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

        Raises:
            ValueError: on every rank, naming the first two that differ.
        """
        values = self.gather_text(repr(value))
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"{what} must be the same on every rank, found {values[0]} on rank 0 and "
                    f"{other} on rank {rank}; give every rank the same flags and files"
                )


class HorovodCollective(Collective):
    """The ranks that `horovodrun` (or MPI) started, over Gloo, NCCL or MPI."""

    def __init__(self, patience: float) -> None:
        import horovod.tensorflow as hvd

        # Gloo's own limit for one message; a rank that dies or hangs is found sooner, and by name,
        # by the watch, and one that is merely late is let be.
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(patience)))

        # Milliseconds between looks for work. An exchange waits for several of them in turn, which
        # at Horovod's own 1 ms is a tenth of a short step.
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.2")
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """One grouped all-reduce."""
        return self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Average, name=name)

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """One all-reduce."""
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name=name)

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One all-to-all of given splits."""
        # Horovod moves no bfloat16; the same bits travel as another type of their size.
        wire = tf.bitcast(tensor, tf.uint16) if tensor.dtype == tf.bfloat16 else tensor
        received, received_splits = self._hvd.alltoall(wire, splits=splits, name=name)
        return tf.bitcast(received, tensor.dtype), received_splits

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """One broadcast a variable."""
        for index, variable in enumerate(variables):
            variable.assign(self._hvd.broadcast(variable, root_rank=0, name=f"broadcast.{index}"))

    def gather_text(self, text: str) -> list[str]:
        """Two all-gathers: lengths, then bytes."""
        data = tf.io.decode_raw(tf.constant(text.encode()), tf.uint8)
        sizes = self._hvd.allgather(tf.constant([len(data)], tf.int32), name="text.sizes").numpy()
        joined = self._hvd.allgather(data, name="text").numpy().tobytes()
        ends = sizes.cumsum()
        return [joined[end - size : end].decode() for size, end in zip(sizes, ends)]


def launched_size(environment: Mapping[str, str]) -> int:
    """How many processes a launcher says it started; 1 where none speaks."""
    return max([int(environment[name]) for name in SIZE_VARIABLES if name in environment] or [1])


def connect(patience: float = 600.0) -> Collective:
    """Joins the other ranks, if there are any.

    Args:
        patience: seconds that a rank may wait for another one's message.

    Raises:
        ValueError: several processes were started, but Horovod is missing or cannot see them.
    """
    launched = launched_size(os.environ)
    if launched == 1:
        collective = Collective()
    else:
        try:
            collective = HorovodCollective(patience)
        except ImportError as error:
            raise ValueError(
                f"{launched} processes were started, but Horovod cannot be imported ({error}); "
                "run `make setup` and use the python3 of its environment"
            ) from error
        if collective.size != launched:
            raise ValueError(
                f"the launcher started {launched} processes, but Horovod sees {collective.size}: "
                "it was built without this launcher's protocol; start with horovodrun instead"
            )
    return collective


def exchanges() -> list[str]:
    """What Horovod was built with to exchange tensors: of NCCL, Gloo and MPI.

    Raises:
        ImportError: there is no Horovod.
    """
    import horovod.tensorflow as hvd

    built = {"NCCL": hvd.nccl_built(), "Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built()}
    return [name for name, there in built.items() if there]
