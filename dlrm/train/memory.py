"""What a rank's memory must hold, counted before anything is allocated.

Counts tables and what one step adds to them, and compares that with the memory that is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from dlrm import embedding
from dlrm.config import EmbeddingConfig, ModelConfig
from dlrm.distributed import devices, sharding
from dlrm.distributed.collective import Collective
from dlrm.distributed.host_memory import free_host_memory
from dlrm.formats.quantities import GIB, memory_text
from dlrm.layers.interaction_shape import DOT_SHAPE, InteractionShape

_SLOT_BYTES = 20  # a key of a dynamic table: key, time of last use, digest, and its bucket's share


@dataclass(frozen=True)
class Need:
    """Bytes that one rank needs of one memory.

    Attributes:
        table: Rows and their optimizer state, in float32.
        exchange: Keys, vectors and gradients on their way, of a batch without a repeated key.
        dense: Activations kept for the backward pass, dense weights, their gradients, optimizer
            state and low-precision copies.
    """

    table: int = 0
    exchange: int = 0
    dense: int = 0

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.table + self.exchange + self.dense


def check_memory(
    backend: str,
    layout: embedding.RowLayout,
    model: ModelConfig,
    options: EmbeddingConfig,
    collective: Collective,
    local_batch: int,
    num_dense: int,
    dense_state: int,
    ids: int = 0,
) -> str:
    """Compares what this rank will need with what is free.

    Args:
        backend: Where the rows will lie; see `embedding.create`.
        layout: The tables, and what the optimizer keeps behind each row.
        model: The shape of the dense part.
        options: Settings of the tables.
        collective: The ranks.
        local_batch: Number of samples of one step on this rank.
        num_dense: Number of dense features.
        dense_state: Values of optimizer state of a dense weight.
        ids: Number of ids of a sample, where tables hold bags of them; 0 for one in each table.

    Returns:
        The need in words.

    Raises:
        ValueError: It does not fit; the message says by how much, and what would help.
    """
    table = layout.table
    grows = backend == "dynamic"
    rows = sharding.local_rows(table.rows, collective.rank, collective.size)
    need = step_need(
        rows=0 if grows else options.sok_rows or rows,
        tables=len(table.vocab_sizes),
        width=table.width,
        state_width=layout.width - table.width,
        local_batch=local_batch,
        value_bytes=tf.as_dtype(model.compute_dtype).size,
        num_dense=num_dense,
        bottom=model.bottom_mlp,
        top=model.top_mlp,
        dense_state=dense_state,
        interaction=model.interaction_shape,
        ids=ids,
    )
    text = check_need(need, backend, layout, options.sok_gpu_gb, collective)
    return (
        f"{text}, and about {_id_bytes(layout)} bytes for each id that it keeps" if grows else text
    )


def _id_bytes(layout: embedding.RowLayout) -> int:
    """Bytes of an id of a dynamic table: its row, and 24 bytes in a table that is half full."""
    return layout.width * 4 + 2 * 24


def check_need(
    need: Need,
    backend: str,
    layout: embedding.RowLayout,
    sok_gpu_gb: int,
    collective: Collective,
    remedy: str = "",
) -> str:
    """Compares a need with what is free where the backend keeps rows, as `check_memory` does.

    Args:
        need: What this rank would need with static tables.
        backend: Where the rows will lie; see `embedding.create`.
        layout: The tables, and what the optimizer keeps behind each row.
        sok_gpu_gb: GiB of rows that `sok_dynamic` keeps on a GPU.
        collective: The ranks.
        remedy: The end of the message: what may help apart from more ranks.
    """
    ranks = collective.size
    rows = need.table // (4 * layout.width)
    if backend == "sok":
        remedy += "; --embedding=sok_dynamic lets rows lie in the host's memory"
    elif backend == "sok_dynamic":
        need, host = dynamic_needs(
            need,
            slots=embedding.dynamic_capacity(rows),
            width=layout.width,
            gpu_bytes=sok_gpu_gb * GIB,
        )
        free = free_host_memory()
        share = None if free is None else free // collective.local_size
        require(host, share, memory="the host's memory", rows=rows, ranks=ranks)
        remedy += "; a smaller --sok_gpu_gb leaves more rows to the host"
    require(
        need,
        devices.free_memory(collective.local_size),
        memory="the GPU's memory" if devices.has_gpu() else "this machine's memory",
        rows=rows,
        ranks=ranks,
        remedy=remedy,
    )
    return describe(need, rows)


def step_need(
    *,
    rows: int,
    tables: int,
    width: int,
    state_width: int,
    local_batch: int,
    value_bytes: int,
    num_dense: int,
    bottom: tuple[int, ...],
    top: tuple[int, ...],
    dense_state: int = 0,
    interaction: InteractionShape = DOT_SHAPE,
    ids: int = 0,
) -> Need:
    """Counts what a rank needs to train with static tables.

    The most is held when the gradients of the vectors arrive: then the batch's distinct rows are
    there as they were read and as sums of gradients, in float32, their optimizer state before the
    update, after it and as it is written, and each vector and its gradient, in the type of the
    exchange. Keys and positions, of this batch and the next, are 64 bytes per vector.

    Args:
        rows: Number of the tables' rows that this rank owns.
        tables: Number of tables.
        width: Values in a row.
        state_width: Values of optimizer state behind a row.
        local_batch: Number of samples of one step on this rank.
        value_bytes: Bytes of one value in the exchange and in the dense layers.
        num_dense: Number of dense features.
        bottom: Units of the bottom MLP's layers.
        top: Units of the top MLP's layers.
        dense_state: Values of optimizer state of a dense weight.
        interaction: The interaction.
        ids: Number of ids of a sample, where tables hold bags of them; 0 for one in each table.
    """
    vectors = local_batch * (ids or tables)
    weights = interaction.weights(width, tables)
    for sizes in ((num_dense, *bottom), (interaction.output_width(width, tables), *top)):
        weights += sum(a * b + b for a, b in zip(sizes, sizes[1:]))
    activations = sum(bottom) + sum(top) + interaction.activations(width, tables)
    return Need(
        table=rows * (width + state_width) * 4,
        exchange=vectors * (width * (2 * 4 + 2 * value_bytes) + state_width * 3 * 4 + 64),
        # Weights: themselves, their gradients, copies in the layers' type, and state.
        dense=local_batch * activations * value_bytes + weights * (12 + 4 * dense_state),
    )


def dynamic_needs(static: Need, *, slots: int, width: int, gpu_bytes: int) -> tuple[Need, Need]:
    """Counts what a rank with a dynamic table needs on its GPU, and on the host.

    Args:
        static: What it would need with static tables.
        slots: Number of rows that the table has room for when it is full.
        width: Values in a row and its state.
        gpu_bytes: Bytes of rows that the GPU keeps.
    """
    full = slots * width * 4
    near = min(full, gpu_bytes)
    gpu = Need(near + slots * _SLOT_BYTES, static.exchange, static.dense)
    return gpu, Need(table=full - near)


def require(
    need: Need, free: int | None, *, memory: str, rows: int, ranks: int, remedy: str = ""
) -> None:
    """Checks that a need fits into what is free.

    Args:
        need: Need of one rank.
        free: Free bytes; None if they cannot be determined.
        memory: Name of the memory, for the message.
        rows: Number of the tables' rows that the rank owns.
        ranks: Number of ranks that share the tables.
        remedy: The end of the message: what may help apart from more ranks.

    Raises:
        ValueError: It does not fit.
    """
    if free is None or need.total <= free:
        return
    fixed = need.exchange + need.dense
    if free > fixed and need.table:
        enough = -(-need.table * ranks // (free - fixed))
        more = f"{enough} ranks with as much each would hold them"
    else:
        more = "a smaller --global_batch_size needs less in addition to the rows"
    raise ValueError(
        f"{memory}: expected {memory_text(need.total)} free for {describe(need, rows)}, found "
        f"{memory_text(free)}, {memory_text(need.total - free)} too little; {more}{remedy}"
    )


def describe(need: Need, rows: int) -> str:
    """Names the parts of a need in one line."""
    return (
        f"{memory_text(need.table)} of {rows:,} rows, {memory_text(need.exchange)} of exchange and "
        f"{memory_text(need.dense)} of dense layers"
    )
