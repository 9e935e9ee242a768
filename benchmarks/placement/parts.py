"""The model of the step time where its parts can be measured: beside a step of this machine.

    python3 -m benchmarks.placement.parts [--steps=N]

Trains MLPerf's MLPs on the synthetic tables, on one process and on two ranks. After each step the
same ranks run the parts alone: the step's products, a gather of as many rows as the step looks up,
an all-to-all of their vectors, and an all-reduce of the dense gradients. Their rates make this
machine an `Accelerator`, and the model's parts are printed beside the measured step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.placement.counting import count
    from benchmarks.placement.placements import BY_MODULO, placements
    from benchmarks.placement.step_time import (
        BOTTOM,
        DENSE_VALUES,
        INTERACTION,
        NUM_DENSE,
        TOP,
        WIDTH,
        Accelerator,
        step_time,
    )
    from benchmarks.shapes import SHAPES
    from benchmarks.step import WARMUP, Clock, own_products
    from dlrm.data import SyntheticSource
    from dlrm.distributed.sharding import key_offsets
    from dlrm.train.products import products

SHAPE = SHAPES["mlperf_mlps"]
GLOBAL_BATCH = 4096
VECTOR = WIDTH * 4  # bytes


def actions(local_batch: int, collective: Any) -> list[Callable[[], object]]:
    """The parts of a step, each a function that returns when its work is done."""
    import tensorflow as tf

    from dlrm.distributed import devices

    lanes, tables, size = devices.lanes(), len(SHAPE.vocab_sizes), collective.size
    top, bottom = [INTERACTION, *TOP], [NUM_DENSE, *BOTTOM]
    own = [own_products(local_batch // lanes, tables + 1, bottom, top) for _ in range(lanes)]
    vectors = local_batch * tables
    rows = tf.random.normal([sum(SHAPE.vocab_sizes) // size, WIDTH])
    chosen = [tf.random.uniform([vectors // lanes], 0, len(rows), tf.int32) for _ in range(lanes)]
    multiply = tf.function(lambda: tf.add_n([lane() for lane in own]))
    gather = tf.function(lambda: tf.add_n([tf.gather(rows, ids)[0, 0] for ids in chosen]))
    parts: list[Callable[[], object]] = [lambda: float(multiply()), lambda: float(gather())]
    if size > 1:
        sent = tf.random.normal([vectors // size * size, WIDTH])
        splits = tf.fill([size], vectors // size)
        dense = tf.random.normal([DENSE_VALUES])
        parts.append(lambda: collective.alltoall(sent, splits, name="parts.vectors")[0].numpy())
        parts.append(lambda: collective.mean([dense], name="parts.dense")[0].numpy())
    return parts


def work(steps: int) -> None:
    """Trains on one rank; rank 0 reports seconds: of the step, and of each part."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    config = SHAPE.config(GLOBAL_BATCH)
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = SHAPE.data(GLOBAL_BATCH, WARMUP + steps, collective.rank, collective.size)
    trainer = build_trainer(config, backend, collective, data, build_model)
    clock = Clock(actions(GLOBAL_BATCH // collective.size, collective))
    trainer.train([data.train], data.train, clock)
    if collective.rank == 0:
        ranks.report([statistics.median(seconds) for seconds in (clock.steps, *clock.between)])


def describe(size: int, steps: int) -> str:
    """Measures a number of ranks, and returns a line of the table."""
    measured, multiply, gather, *exchanged = ranks.measure(
        size, "benchmarks.placement.parts", ["--work", f"--steps={steps}"]
    )
    samples, tables = GLOBAL_BATCH // size, len(SHAPE.vocab_sizes)
    operations = products(NUM_DENSE, tables, BOTTOM, TOP) * samples
    vectors = samples * tables
    link = vectors * VECTOR * (size - 1) / size / exchanged[0] if exchanged else float("inf")
    # A gather reads each row and writes it.
    machine = Accelerator(
        *("this machine", {"float32": operations / multiply}, 2 * vectors * VECTOR / gather),
        *(link, link),
        message=0.0,
    )
    source = SyntheticSource(SHAPE.vocab_sizes, NUM_DENSE, GLOBAL_BATCH, seed=0)  # as trained on
    ids = [source.read(rank * samples, (rank + 1) * samples)[1] for rank in range(size)]
    keys = [each + key_offsets(SHAPE.vocab_sizes) for each in ids]
    ways = placements(SHAPE.vocab_sizes, size)
    found = count(keys, ways, size, sum(SHAPE.vocab_sizes))[BY_MODULO, False]
    parts = step_time(machine, "float32", found, samples)
    reduced = 1e3 * exchanged[1] if exchanged else 0.0
    total = parts.products + parts.memory + parts.exchange + reduced
    return (
        f"| {size} | {1e3 * measured:.0f} | {parts.products:.0f} | {parts.memory:.0f} | "
        f"{parts.exchange:.0f} | {reduced:.0f} | {1e3 * measured / total:.2f} |"
    )


def main() -> int:
    """Prints a line for one process and for two ranks; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="steps that count (default: 10)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.steps)
        return os.EX_OK
    print(f"{SHAPE.title}, batch {GLOBAL_BATCH}, float32, milliseconds")
    print("| ranks | step | products | memory | exchange | all-reduce | step / sum of parts |")
    print("|---|---|---|---|---|---|---|")
    for size in (1, 2):
        print(describe(size, options.steps), flush=True)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
