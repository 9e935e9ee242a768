"""The results of the placement study: a line for each way and number of ranks, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from benchmarks.placement.counting import Exchange, count, greatest_over_mean
from benchmarks.placement.placements import placements
from benchmarks.placement.step_time import (
    A100,
    BYTES_OF,
    KEY_BYTES,
    PUBLISHED,
    WIDTH,
    of_published,
    rests,
    step_time,
)
from benchmarks.placement.streams import KeyStream

GLOBAL_BATCH, LOCAL_BATCH = 65536, 8192
SCALINGS = ("strong", "weak")


class Load(NamedTuple):
    """One line of the results; `_over_mean` is the most loaded rank's share over the mean.

    Attributes:
        scaling: Whether the global batch stays the same (strong) or the local batch does (weak).
        ranks: Number of ranks.
        placement: Name of the placement.
        compress: Whether each distinct key of a local batch is sent only once.
        keys: Mean of the keys that an owner is asked for.
        keys_over_mean: The greatest number of keys over that mean.
        distinct: Mean of the distinct rows that an owner reads.
        distinct_over_mean: The greatest number of distinct rows over that mean.
        megabytes: Greatest number of MB that a rank sends to others, in float32.
        megabytes_over_mean: That over the mean.
        rows_over_mean: Greatest number of rows that a rank keeps over the mean; None if not known.
        milliseconds: Step time of the model on A100, in float32.
        samples_per_second: The rate that follows.
    """

    scaling: str
    ranks: int
    placement: str
    compress: bool
    keys: float
    keys_over_mean: float
    distinct: float
    distinct_over_mean: float
    megabytes: float
    megabytes_over_mean: float
    rows_over_mean: Optional[float]
    milliseconds: float
    samples_per_second: float


def loads(
    stream: KeyStream, vocab_sizes: Sequence[int], scaling: str, ranks: int, rest: float
) -> list[Load]:
    """Counts one step of a number of ranks under every placement.

    Args:
        stream: The samples.
        vocab_sizes: Number of rows of each table.
        scaling: One of `SCALINGS`.
        ranks: Number of ranks.
        rest: Milliseconds of a step beyond the model's parts.
    """
    samples = GLOBAL_BATCH // ranks if scaling == "strong" else LOCAL_BATCH
    found = []
    ways = placements(vocab_sizes, ranks)
    exchanges = exchange_of(stream, vocab_sizes, samples, ranks)
    for way in ways:
        held = np.array(way.rows)
        for compress in (False, True):
            exchange = exchanges[way.name, compress]
            sent = exchange.bytes_sent(KEY_BYTES, WIDTH * BYTES_OF["float32"])
            milliseconds = step_time(A100, "float32", exchange, samples).total + rest
            found.append(
                Load(
                    *(scaling, ranks, way.name, compress),
                    *(exchange.received.mean(), greatest_over_mean(exchange.received)),
                    *(exchange.rows.mean(), greatest_over_mean(exchange.rows)),
                    *(sent.max() / 1e6, greatest_over_mean(sent)),
                    greatest_over_mean(held) if len(held) else None,
                    milliseconds,
                    1e3 * samples * ranks / milliseconds,
                )
            )
    return found


def exchange_of(
    stream: KeyStream, vocab_sizes: Sequence[int], samples: int, ranks: int
) -> dict[tuple[str, bool], Exchange]:
    """The exchanges of one step, by placement and `--compress`."""
    batches = stream.local_batches(samples, ranks)
    return count(batches, placements(vocab_sizes, ranks), ranks, sum(vocab_sizes))


def results_text(results: Sequence[Load]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| ranks | placement | keys an owner is asked for | distinct rows it reads | MB a rank "
        "sends | rows it keeps | step, ms | M samples/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load in results:
        name = load.placement + (", compress" if load.compress else "")
        kept = "" if load.rows_over_mean is None else f"x {load.rows_over_mean:.2f}"
        lines.append(
            f"| {load.ranks:,} | {name} | {load.keys:,.0f} x {load.keys_over_mean:.2f} | "
            f"{load.distinct:,.0f} x {load.distinct_over_mean:.2f} | "
            f"{load.megabytes / load.megabytes_over_mean:.1f} x {load.megabytes_over_mean:.2f} | "
            f"{kept} | {load.milliseconds:.2f} | {load.samples_per_second / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def published_text(exchanges: dict[tuple[str, bool], Exchange]) -> str:
    """The model beside the published steps, as a table in Markdown."""
    lines = [
        "| source | 8 GPUs | placement | type | published, ms | products | memory | exchange | "
        "all-reduce | rest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found, rest in zip(PUBLISHED, rests(exchanges, LOCAL_BATCH)):
        parts = of_published(found, exchanges, LOCAL_BATCH)
        name = found.placement + (", compress" if found.compress else "")
        lines.append(
            f"| {found.source} | {found.gpu.name} | {name} | {found.dtype} | "
            f"{found.milliseconds:.2f} | {parts.products:.2f} | {parts.memory:.2f} | "
            f"{parts.exchange:.2f} | {parts.all_reduce:.2f} | {rest:.2f} |"
        )
    return "\n".join(lines) + "\n"
