"""Training samples/s of the whole step, compared with the bound that the matrix products set.

    python3 -m benchmarks.step [--shape demo|kaggle|mlperf_mlps] [--batch N] [--rounds N]
        [--steps N] [--nocompress]

For each shape, one process on all cores, the same without the fused operations of the presets, and
two ranks on the same cores run in turn, several times. The single process times steps and matrix
products alternately, so that both see the same machine. There are two bounds: the time that the
operations of the step's own products (MLPs and interaction, forward and backward) would take at the
rate of large square products, and the time that TensorFlow takes for those products alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import CASES, FUSED, NUM_DENSE, SHAPES
    from dlrm.train.callback import Callback

WARMUP = 4
SQUARE = 2048  # rows and columns of the large product's factors


class Clock(Callback):
    """Times each step of a training loop, and other actions between the steps.

    Args:
        between: Actions that are timed after each step.

    Attributes:
        steps: Seconds of each step after the warm-up.
        between: Seconds of each action, one list per action.
    """

    def __init__(self, between: Sequence[Callable[[], object]]) -> None:
        self.steps: list[float] = []
        self.between: list[list[float]] = [[] for _ in between]
        self._between = between
        self._last = time.perf_counter()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Called after every step, which has ended because its loss is known."""
        if step > WARMUP:
            self.steps.append(time.perf_counter() - self._last)
        for action, seconds in zip(self._between, self.between):
            begin = time.perf_counter()
            action()
            if step > WARMUP:
                seconds.append(time.perf_counter() - begin)
        self._last = time.perf_counter()


def own_products(batch: int, features: int, bottom: list[int], top: list[int]) -> Any:
    """Returns a function whose scalar result needs every product of a step exactly once.

    Args:
        batch: Number of samples.
        features: Number of vectors per sample that interact.
        bottom: Width of the bottom MLP's input and of each of its layers.
        top: Width of the top MLP's input and of each of its layers.
    """
    import tensorflow as tf

    results = []
    for units in (bottom, top):
        for index, (a, b) in enumerate(zip(units, units[1:])):
            x, y, kernel = (tf.random.normal(s) for s in ([batch, a], [batch, b], [a, b]))
            results += [(x, kernel, False, False), (x, y, True, False)]
            if index or units is top:
                results.append((y, kernel, False, True))
    stacked = tf.random.normal([batch, features, bottom[-1]])
    symmetric = tf.random.normal([batch, features, features])
    results += [(stacked, stacked, False, True), (symmetric, stacked, False, False)]
    return lambda: tf.add_n(
        [
            tf.reshape(tf.matmul(a, b, transpose_a=ta, transpose_b=tb), [-1])[0]
            for a, b, ta, tb in results
        ]
    )


def work(name: str, batch: int, steps: int, switches: dict[str, bool]) -> None:
    """Trains on one rank; rank 0 reports the figures."""
    import tensorflow as tf

    from dlrm import embedding
    from dlrm.distributed import devices
    from dlrm.layers.interaction_width import interaction_width
    from dlrm.train.build import build_trainer, join
    from dlrm.train.products import products
    from model import build_model

    shape = CASES[name]
    config = shape.config(batch, **switches)
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = shape.data(batch, WARMUP + steps, collective.rank, collective.size)
    trainer = build_trainer(config, backend, collective, data, build_model)

    alone = collective.size == 1
    between: list[Callable[[], object]] = []
    if alone:
        # One product per lane of the step at a time, which keeps all cores busy.
        lanes, tables = devices.lanes(), len(data.vocab_sizes)
        squares = [tf.random.normal([SQUARE, SQUARE]) for _ in range(lanes)]
        bottom = [NUM_DENSE, *config.model.bottom_mlp]
        top = [interaction_width(config.model.embedding_dim, tables), *config.model.top_mlp]
        own = [own_products(batch // lanes, tables + 1, bottom, top) for _ in range(lanes)]
        multiply_squares = tf.function(lambda: tf.add_n([tf.matmul(a, a)[0, 0] for a in squares]))
        multiply_own = tf.function(lambda: tf.add_n([lane() for lane in own]))
        between = [lambda: float(multiply_squares()), lambda: float(multiply_own())]
    clock = Clock(between)
    # Kept in memory: generating samples takes as long as a step of a small model.
    batches = list(data.train)
    trainer.train([batches], batches, clock)
    if collective.rank == 0:
        result = {"samples_per_second": batch / statistics.median(clock.steps)}
        if alone:
            squares_seconds, own_seconds = map(statistics.median, clock.between)
            rate = lanes * 2 * SQUARE**3 / squares_seconds
            flops = products(NUM_DENSE, tables, config.model.bottom_mlp, config.model.top_mlp)
            result.update(gigaflops=rate / 1e9, bound=rate / flops, own_bound=batch / own_seconds)
        ranks.report(result)


def main() -> int:
    """Prints a line per round and the medians of the ratios; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", choices=sorted(CASES), action="append", help="default: the two large ones"
    )
    parser.add_argument("--batch", type=int, default=8192, help="global batch (default: 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps that count (default: 20)")
    parser.add_argument("--nocompress", action="store_true", help="send repeated keys repeatedly")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        switches = {"compress": not options.nocompress, **({} if options.plain else FUSED)}
        work(options.shape[0], options.batch, options.steps, switches)
        return 0
    for name in options.shape or SHAPES:
        print(f"{CASES[name].title}, batch {options.batch}, float32, samples/s")
        arguments = ["--work", "--shape", name, "--batch", str(options.batch)]
        arguments += ["--steps", str(options.steps)]
        arguments += ["--nocompress"] if options.nocompress else []
        ratios: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            one = ranks.measure(1, "benchmarks.step", arguments)
            plain = ranks.measure(1, "benchmarks.step", [*arguments, "--plain"])
            two = ranks.measure(2, "benchmarks.step", arguments)
            rate = one["samples_per_second"]
            for title, ratio in (
                ("one process / bound", rate / one["bound"]),
                ("one process / own products alone", rate / one["own_bound"]),
                ("one process / without the fused operations", rate / plain["samples_per_second"]),
                ("two ranks / one process", two["samples_per_second"] / rate),
            ):
                ratios.setdefault(title, []).append(ratio)
            print(
                f"  one process {rate:,.0f}  bound {one['bound']:,.0f} "
                f"({one['gigaflops']:.0f} GFLOP/s)  own products alone {one['own_bound']:,.0f}  "
                f"without the fused operations {plain['samples_per_second']:,.0f}  "
                f"two ranks {two['samples_per_second']:,.0f}"
            )
        for title, found in ratios.items():
            spread = f"({min(found):.2f} - {max(found):.2f})"
            print(f"  {title}: median {statistics.median(found):.2f} {spread}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
