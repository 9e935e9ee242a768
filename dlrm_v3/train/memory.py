"""What a rank's memory must hold to train, estimated before anything is allocated."""

from __future__ import annotations

from dlrm.distributed import sharding
from dlrm.distributed.collective import Collective
from dlrm.embedding import RowLayout
from dlrm.train.memory import Need, check_need
from dlrm_v3.config import HstuConfig


def check_memory(
    backend: str,
    layout: RowLayout,
    config: HstuConfig,
    sok_gpu_gb: int,
    collective: Collective,
    *,
    local_batch: int,
    max_length: int,
    value_bytes: int,
) -> str:
    """Compares what this rank may need with what is free.

    Args:
        backend: Where the rows will lie: `alltoall`, `sok` or `sok_dynamic`.
        layout: The tables, and what the optimizer keeps behind each row.
        config: The shape of the model.
        sok_gpu_gb: GiB of rows that `sok_dynamic` keeps on a GPU.
        collective: The ranks.
        local_batch: Most requests of a step on this rank.
        max_length: Most tokens of a request.
        value_bytes: Bytes of one value in the exchange and in the dense layers.

    Returns:
        The need in words.

    Raises:
        ValueError: It does not fit; the message says by how much, and what would help.
    """
    rows = sharding.local_rows(layout.table.rows, collective.rank, collective.size)
    need = step_need(layout, config, rows, local_batch * max_length, value_bytes)
    remedy = "; a smaller --max_history needs less too"
    return check_need(need, backend, layout, sok_gpu_gb, collective, remedy)


def step_need(
    layout: RowLayout, config: HstuConfig, rows: int, tokens: int, value_bytes: int
) -> Need:
    """Counts what a rank needs for a step in which every history is as long as may be.

    The most is held when the backward pass begins: each token's vector and row, and for each layer
    its input, normalised and not, the projections and the attended values, also after dropout. The
    attention's gradient, one layer at a time, adds parts of the queries' gradients.

    Args:
        layout: The tables.
        config: The shape of the model.
        rows: Number of the tables' rows that this rank owns.
        tokens: Number of tokens of the step.
        value_bytes: Bytes of one value in the exchange and in the dense layers.
    """
    width, values = config.width, config.heads * config.value_dim
    projected = 2 * config.heads * (config.value_dim + config.attention_dim)
    layer = 2 * width + projected + 2 * 3 * values
    first = 2 * (config.hidden + width) + width
    # See hstu_op/README.md: at most 4.5 times the queries, in float32.
    query_parts = config.heads * config.attention_dim * 4 * 9 // 2
    weights = config.layers * width * (projected + 3 * values)
    weights += (config.position_buckets + config.time_buckets) * width
    return Need(
        table=rows * layout.width * 4,
        exchange=tokens * (width * (2 * 4 + 2 * value_bytes) + 64),
        # Weights: themselves, their gradients, two means each and copies in the layers' type.
        dense=tokens * ((config.layers * layer + first) * value_bytes + query_parts) + weights * 20,
    )
