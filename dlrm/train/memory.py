"""What a rank's memory must hold, counted before anything is allocated.

Counts tables and what one step adds to them; knows nothing of devices but the bytes they have free.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
_SLOT_BYTES = 20  # a key of a dynamic table: key, time of last use, digest, and its bucket's share


@dataclass(frozen=True)
class Need:
    """Bytes that one rank needs of one memory.

    Attributes:
        table: rows and their optimizer state, in float32.
        exchange: keys, vectors and gradients on their way, of a batch without a repeated key.
        dense: what the dense layers keep of a batch for the way back, and their weights.
    """

    table: int = 0
    exchange: int = 0
    dense: int = 0

    @property
    def total(self) -> int:
        """Of all three."""
        return self.table + self.exchange + self.dense


def step_need(
    *,
    rows: int,
    tables: int,
    width: int,
    state_width: int,
    local_batch: int,
    value_bytes: int,
    units: tuple[int, ...],
) -> Need:
    """What a rank needs to train with static tables.

    The most is held when the gradients of the vectors arrive: then the batch's distinct rows are
    there as they were read and as sums of gradients, in float32, their optimizer state before and
    after the update, and each vector and its gradient, in the type of the exchange. Keys and
    positions, of this batch and the next, are 64 bytes per vector.

    Args:
        rows: of the tables, that this rank owns.
        tables: how many.
        width: values in a row.
        state_width: Values of optimizer state behind a row.
        local_batch: samples of a step on this rank.
        value_bytes: of a value on its way and in the dense layers.
        units: outputs of all dense layers.
    """
    vectors = local_batch * tables
    features = tables + 1
    pairs = features * features + features * width  # products, and the vectors stacked
    layers = [width + features * tables // 2, *units]
    weights = sum(a * b for a, b in zip(layers, layers[1:]))
    return Need(
        table=rows * (width + state_width) * 4,
        exchange=vectors * (width * (2 * 4 + 2 * value_bytes) + state_width * 2 * 4 + 64),
        # Weights: themselves, their gradients, and copies in the layers' type.
        dense=local_batch * (sum(units) + pairs) * value_bytes + weights * 12,
    )


def dynamic_needs(static: Need, *, slots: int, width: int, gpu_bytes: int) -> tuple[Need, Need]:
    """What a rank with a dynamic table needs on its GPU, and on the host.

    Args:
        static: what it would need with static tables.
        slots: the rows that the table has room for when it is full.
        width: Values in a row and its state.
        gpu_bytes: of rows that the GPU keeps.
    """
    full = slots * width * 4
    near = min(full, gpu_bytes)
    gpu = Need(near + slots * _SLOT_BYTES, static.exchange, static.dense)
    return gpu, Need(table=full - near)


def check(need: Need, free: int | None, *, place: str, rows: int, ranks: int, remedy: str) -> None:
    """Holds a need to what there is.

    Args:
        need: of one rank.
        free: bytes; None if nobody knows.
        place: the memory, in words.
        rows: of the tables, that the rank owns.
        ranks: how many share the tables.
        remedy: what may help beside more ranks.

    Raises:
        ValueError: it does not fit.
    """
    if free is None or need.total <= free:
        return
    fixed = need.exchange + need.dense
    if free > fixed and need.table:
        enough = -(-need.table * ranks // (free - fixed))
        more = f"{enough} ranks with as much each would hold them"
    else:
        more = "a smaller --global_batch_size needs less beside the rows"
    raise ValueError(
        f"{place}: expected {gib(need.total)} free for {describe(need, rows)}, found {gib(free)}, "
        f"{gib(need.total - free)} too little; {more}{remedy}"
    )


def describe(need: Need, rows: int) -> str:
    """One line: `12.1 GiB: 10.0 GiB of 21,000,000 rows, ...`."""
    return (
        f"{gib(need.table)} of {rows:,} rows, {gib(need.exchange)} of exchange and "
        f"{gib(need.dense)} of dense layers"
    )


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:,.2f} GiB"
