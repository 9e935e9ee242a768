"""Training samples/s of the whole step, beside the bound that the matrix products give.

    python3 -m benchmarks.step [--shape mlperf|kaggle] [--rounds N] [--steps N] [--nocompress]

For each shape, one process on all cores and two ranks on the same cores run in turn, several
times. The single process times steps and matrix products alternately, so that both see the same
machine. Two bounds, nothing else of the step being in them: the time that the operations of the
step's own products (MLPs and interaction, forward and backward) take at the rate of large square
products; and the time that those products themselves take, run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
GLOBAL_BATCH = 8192
WARMUP = 4
SQUARE = 2048  # rows and columns of the large product's factors
KAGGLE_VOCAB_SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
MODELS: dict[str, dict[str, Any]] = {
    "mlperf": {},  # the defaults
    "kaggle": {"embedding_dim": 16, "bottom_mlp": (512, 256, 64, 16), "top_mlp": (512, 256, 1)},
}


def products(num_dense: int, tables: int, bottom: tuple[int, ...], top: tuple[int, ...]) -> int:
    """Floating-point operations a sample in the products of one step.

    A layer multiplies three times: output, gradient of its kernel, gradient of its input; the first
    layer of the bottom MLP needs no gradient of its input. A pair of the interaction costs one
    multiplication a value forward and two backward.
    """
    from dlrm.layers.dot_interaction import interaction_width

    def multiplications(units: list[int]) -> list[int]:
        return [a * b for a, b in zip(units, units[1:])]

    first, *others = multiplications([num_dense, *bottom])
    others += multiplications([interaction_width(bottom[-1], tables), *top])
    others.append(tables * (tables + 1) // 2 * bottom[-1])
    return 2 * (2 * first + 3 * sum(others))


class Clock:
    """Times each step of a training loop; between two steps it times something else."""

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

    def evaluation(self, result: object) -> None:
        """The benchmark evaluates nothing."""


def own_products(batch: int, features: int, bottom: list[int], top: list[int]) -> Any:
    """A scalar that needs every product of a step on a batch to be computed once."""
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


def config_of(shape: str, **settings: Any) -> Any:
    """The settings of a run of this shape."""
    from dlrm.config import Config

    return Config.of(
        use_synthetic_dataset=True,
        global_batch_size=GLOBAL_BATCH,
        lr=0.1,
        log_interval=1,
        **MODELS[shape],
        **settings,
    )


def data_of(shape: str, steps: int, collective: Any) -> Any:
    """So many steps and those before them, of this rank."""
    from dlrm.data import SYNTHETIC_NUM_DENSE, SYNTHETIC_VOCAB_SIZES, Batches, Data, SyntheticSource

    vocab_sizes = SYNTHETIC_VOCAB_SIZES if shape == "mlperf" else KAGGLE_VOCAB_SIZES
    samples = (WARMUP + steps) * GLOBAL_BATCH
    source = SyntheticSource(vocab_sizes, SYNTHETIC_NUM_DENSE, samples, seed=0)
    batches = Batches(source, GLOBAL_BATCH, collective.rank, collective.size, drop_remainder=True)
    return Data(batches, batches, SYNTHETIC_NUM_DENSE, vocab_sizes, {})


def work(shape: str, steps: int, compress: bool) -> None:
    """One rank's part; rank 0 prints its figures as JSON."""
    import tensorflow as tf

    from dlrm.distributed import devices
    from dlrm.layers.dot_interaction import interaction_width
    from dlrm.train.run import build_trainer, join
    from model import build_model

    config = config_of(shape, compress=compress)
    collective = join(config)
    data = data_of(shape, steps, collective)
    batches, num_dense, vocab_sizes = data.train, data.num_dense, data.vocab_sizes
    trainer = build_trainer(config, collective, data, build_model)

    alone = collective.size == 1
    between: list[Callable[[], object]] = []
    if alone:
        # As many at a time as the step has lanes, so that they too keep all cores busy.
        lanes, tables = devices.lanes(), len(vocab_sizes)
        squares = [tf.random.normal([SQUARE, SQUARE]) for _ in range(lanes)]
        bottom = [num_dense, *config.model.bottom_mlp]
        top = [interaction_width(config.model.embedding_dim, tables), *config.model.top_mlp]
        own = [own_products(GLOBAL_BATCH // lanes, tables + 1, bottom, top) for _ in range(lanes)]
        multiply_squares = tf.function(lambda: tf.add_n([tf.matmul(a, a)[0, 0] for a in squares]))
        multiply_own = tf.function(lambda: tf.add_n([lane() for lane in own]))
        between = [lambda: float(multiply_squares()), lambda: float(multiply_own())]
    clock = Clock(between)
    trainer.train([batches], batches, clock)
    if collective.rank == 0:
        result = {"samples_per_second": GLOBAL_BATCH / statistics.median(clock.steps)}
        if alone:
            squares_seconds, own_seconds = map(statistics.median, clock.between)
            rate = lanes * 2 * SQUARE**3 / squares_seconds
            flops = products(num_dense, tables, config.model.bottom_mlp, config.model.top_mlp)
            result.update(
                gigaflops=rate / 1e9, bound=rate / flops, own_bound=GLOBAL_BATCH / own_seconds
            )
        print("figures " + json.dumps(result), flush=True)


def start(ranks: int, arguments: list[str]) -> dict[str, float]:
    """Runs `work` on so many ranks that share this machine's cores."""
    command = ["./hvd_wrapper.sh", sys.executable, "-m", "benchmarks.step", "--work", *arguments]
    if ranks > 1:
        command = ["horovodrun", "-np", str(ranks), *command]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if "figures " in line:
            figures: dict[str, float] = json.loads(line.split("figures ", 1)[1])
            return figures
    raise SystemExit(f"error: {' '.join(command)} gave no figures:\n{done.stderr[-2000:]}")


def main() -> None:
    """Prints a line a round and the medians of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(MODELS), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--nocompress", action="store_true", help="exchange repeated keys too")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.shape[0], options.steps, not options.nocompress)
        return
    for shape in options.shape or MODELS:
        print(f"{shape} shape, batch {GLOBAL_BATCH}, float32, samples/s")
        arguments = ["--shape", shape, "--steps", str(options.steps)]
        arguments += ["--nocompress"] if options.nocompress else []
        of_bound, of_own, of_one = [], [], []
        for _ in range(options.rounds):
            one, two = start(1, arguments), start(2, arguments)
            of_bound.append(one["samples_per_second"] / one["bound"])
            of_own.append(one["samples_per_second"] / one["own_bound"])
            of_one.append(two["samples_per_second"] / one["samples_per_second"])
            print(
                f"  one process {one['samples_per_second']:,.0f}  bound {one['bound']:,.0f} "
                f"({one['gigaflops']:.0f} GFLOP/s)  own products alone {one['own_bound']:,.0f}  "
                f"two ranks {two['samples_per_second']:,.0f}"
            )
        print(
            f"  median of ratios: one process / bound {statistics.median(of_bound):.2f}, "
            f"one process / own products alone {statistics.median(of_own):.2f}, "
            f"two ranks / one process {statistics.median(of_one):.2f}"
        )


if __name__ == "__main__":
    main()
