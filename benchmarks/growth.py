"""How the time of a step grows with the batch, rows, width, tables and ranks, beside its work.

    python3 -m benchmarks.growth [--size NAME ...] [--quick] [--plain] [--steps N] [--picture FILE]

One size at a time grows, from a step of 4,096 samples, 26 tables, 1 M rows and 16 values in a row.
The exponent of a curve is its slope in a log-log picture, by least squares: 1 is linear, 0 does not
grow. A step may not grow faster than the part of its work that grows fastest: operations of the
layers, products of pairs in the interaction, values of vectors that are moved. Ranks share this
machine's cores, so that more ranks have the same work in all and add messages alone. Processor time
counts all threads and bears other work on the machine better than wall time. `--plain` measures
without the fused operations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

from benchmarks import ranks
from benchmarks.growth_plot import GrowthPanel, plot_growth
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import NUM_DENSE, Shape
    from benchmarks.step import WARMUP, Clock
    from dlrm.data import Batches, Data, SyntheticSource
    from dlrm.distributed.host_memory import free_host_memory

SIZES = ("batch", "rows", "width", "tables", "ranks")
BOTTOM, TOP = (64, 32), (128, 64, 1)  # the bottom MLP ends in the width of a row
_MEMORY = 4 << 30  # bytes, where the machine does not say
TOLERANCE = 0.15  # by which an exponent may pass its work's: caches, noise


@dataclass(frozen=True)
class GrowthStep:
    """A step.

    Attributes:
        ranks: Number of ranks.
        batch: Samples of the global batch.
        rows: Rows of all tables together.
        width: Values in a row.
        tables: Number of tables.
    """

    ranks: int = 1
    batch: int = 4096
    rows: int = 1_000_000
    width: int = 16
    tables: int = 26

    def layers(self) -> float:
        """Floating-point operations of the layers, forward and backward, on all ranks."""
        from dlrm.train.products import products

        every = products(NUM_DENSE, self.tables, (*BOTTOM, self.width), TOP)
        return self.batch * every - 6.0 * self.pairs()

    def pairs(self) -> float:
        """Multiplications of the interaction's forward pass, on all ranks."""
        return self.batch * self.tables * (self.tables + 1) / 2 * self.width

    def vectors(self) -> float:
        """Values in the vectors of a step, of which each pass moves as many, on all ranks."""
        return float(self.batch * self.tables * self.width)

    def messages(self) -> float:
        """Messages of a step's exchanges of keys, vectors and gradients; 1 without others."""
        return max(1.0, 3.0 * self.ranks * (self.ranks - 1))


def axes(quick: bool) -> dict[str, list[GrowthStep]]:
    """Returns, for each size that grows, the steps in order of it."""
    rows = [10**6 * 4**power for power in range(5)]
    # A quarter of what is free, as building the tables needs some more for a moment.
    free = free_host_memory() or _MEMORY
    rows = [n for n in rows if n * GrowthStep.width * 4 <= free // 4]
    sizes: dict[str, Sequence[int]] = {
        "batch": [512 * 4**power for power in range(4)] + [65536],
        "rows": rows,
        "width": (16, 32, 64, 128, 256),
        "tables": (8, 16, 32, 64, 128, 200),
        "ranks": (1, 2, 4, 8),
    }
    if quick:
        sizes = {name: (*values[:2],) for name, values in sizes.items()}
    return {
        name: [dataclasses.replace(GrowthStep(), **{name: value}) for value in values]
        for name, values in sizes.items()
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the slope of log(values) over log(sizes), by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle = statistics.fmean(x)
    return sum((a - middle) * b for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)


class GrowthClock(Clock):
    """Times each step, and the processor's time of all threads.

    Attributes:
        processor: Seconds of each step after the warm-up.
    """

    def __init__(self) -> None:
        super().__init__([])
        self.processor: list[float] = []
        self._before = time.process_time()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Called after every step."""
        super().step(step, loss, learning_rate)
        now = time.process_time()
        if step > WARMUP:
            self.processor.append(now - self._before)
        self._before = now


def work(points: Sequence[GrowthStep], steps: int, plain: bool) -> None:
    """Times the steps of all points, which have the same ranks; rank 0 reports."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    collective, figures = None, []
    for point in points:
        shape = Shape(
            "growth",
            (point.rows // point.tables,) * point.tables,
            {"embedding_dim": point.width, "bottom_mlp": (*BOTTOM, point.width), "top_mlp": TOP},
        )
        fused = not plain
        config = shape.config(point.batch, compress=True, custom_interact=fused, custom_mlp=fused)
        # Joining fixes the threads, once for all points.
        collective = collective or join(config)
        backend, _ = embedding.choose(config.embedding.embedding)
        data = _data(shape, point.batch, steps, collective.rank, collective.size)
        trainer = build_trainer(config, backend, collective, data, build_model)
        clock = GrowthClock()
        trainer.train([data.train], data.test, clock)
        figures.append([statistics.median(clock.steps), statistics.median(clock.processor)])
    if collective and collective.rank == 0:
        ranks.report(figures)


def _data(shape: Shape, batch: int, steps: int, rank: int, size: int) -> Data:
    """Returns batches that hold in memory what the steps need, and one to evaluate."""
    source = SyntheticSource(shape.vocab_sizes, NUM_DENSE, (WARMUP + steps) * batch, seed=0)
    once = SyntheticSource(shape.vocab_sizes, NUM_DENSE, batch, seed=1)
    train, test = (Batches(s, batch, rank, size, drop_remainder=True) for s in (source, once))
    return Data(train, test, NUM_DENSE, shape.vocab_sizes, {})


def measure(points: Sequence[GrowthStep], steps: int, plain: bool) -> list[tuple[float, float]]:
    """Measures points with the same number of ranks, in one process for each rank.

    Returns:
        Seconds of a step and of the processor, of which each rank takes about the same.
    """
    described = json.dumps([dataclasses.asdict(point) for point in points])
    arguments = ["--work", described, "--steps", str(steps), *["--plain"] * plain]
    return [
        (wall, processor * points[0].ranks)
        for wall, processor in ranks.measure(points[0].ranks, "benchmarks.growth", arguments)
    ]


def panel(
    name: str, points: Sequence[GrowthStep], found: Sequence[tuple[float, float]]
) -> GrowthPanel:
    """Returns what the picture and the table say about one size."""
    sizes = [float(getattr(point, name)) for point in points]

    def of(count: Callable[[GrowthStep], float]) -> float:
        return exponent(sizes, [count(point) for point in points])

    work_exponents = {"layers": of(GrowthStep.layers), "pairs": of(GrowthStep.pairs)}
    work_exponents["vectors"] = of(GrowthStep.vectors)
    if name == "ranks":
        work_exponents["messages"] = of(GrowthStep.messages)
    wall, processor = ([times[kind] for times in found] for kind in (0, 1))
    return GrowthPanel(
        name,
        sizes,
        wall,
        processor,
        exponent(sizes, wall),
        exponent(sizes, processor),
        work_exponents,
    )


def table(panels: Sequence[GrowthPanel]) -> list[str]:
    """Returns the lines of the table of exponents."""
    lines = [
        f"{'':8}{'from':>12}{'to':>14}{'ms, first':>11}{'ms, last':>10}"
        f"{'wall':>7}{'processor':>11}  exponents of the work"
    ]
    for one in panels:
        of_work = ", ".join(f"{name} {value:.2f}" for name, value in one.of_work.items())
        faster = min(one.of_wall, one.of_processor) > max(one.of_work.values()) + TOLERANCE
        lines.append(
            f"{one.name:8}{one.sizes[0]:12,.0f}{one.sizes[-1]:14,.0f}{one.wall[0] * 1e3:11.1f}"
            f"{one.wall[-1] * 1e3:10.1f}{one.of_wall:7.2f}{one.of_processor:11.2f}  {of_work}"
            + ("; GROWS FASTER THAN ITS WORK" if faster else "")
        )
    return lines


def main() -> int:
    """Measures, prints the table of exponents and draws the picture; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="*", choices=SIZES, default=SIZES, help="which sizes grow")
    parser.add_argument("--quick", action="store_true", help="two points of each size")
    parser.add_argument("--plain", action="store_true", help="without the fused operations")
    parser.add_argument("--steps", type=int, default=8, help="steps that count (default: 8)")
    parser.add_argument("--picture", default="build/growth.png", help="path of the picture")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        points: list[dict[str, Any]] = json.loads(options.work)
        work([GrowthStep(**sizes) for sizes in points], options.steps, options.plain)
        return 0
    panels = []
    for name, chosen in axes(options.quick).items():
        if name not in options.size:
            continue
        runs = [[point] for point in chosen] if name == "ranks" else [chosen]
        found = [times for run in runs for times in measure(run, options.steps, options.plain)]
        panels.append(panel(name, chosen, found))
        print(table(panels[-1:])[-1], flush=True)
    print("\n".join(table(panels)))
    plot_growth(options.picture, panels)
    print(f"picture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
