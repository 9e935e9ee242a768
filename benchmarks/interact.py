"""The fused interaction compared with that of plain TensorFlow, and the training step with each.

    python3 -m benchmarks.interact [--rounds N] [--types LIST] [--nostep | --steponly]

Forward and backward pass of both run in turn in one process, with the number of lanes that the
training step has, so that both see the same machine; the ratio is the median over the rounds. Bytes
are those that must move: every input read once, every result written once.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any, Callable

from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import SHAPES
    from benchmarks.step import WARMUP
    from dlrm.train.callback import Callback

BATCH, TABLES, WIDTHS = {"CPU": 8192, "GPU": 65536}, 26, (16, 128)
TYPES = ("float32", "float16", "bfloat16")
STEPS = 12  # of each kind in a round
GLOBAL_BATCH = 8192


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Returns the seconds of one call, the median over some repeats."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def passes(interact: Any, lanes: list[Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns two functions: the forward pass of every lane; forward and backward of every lane."""
    import tensorflow as tf

    def ended(tensors: list[tf.Tensor]) -> tf.Tensor:
        # Depends on every result, so none is left out, and a GPU has finished once it is known.
        return tf.add_n([tf.cast(tf.reshape(tensor, [-1])[0], tf.float32) for tensor in tensors])

    @tf.function
    def forward() -> tf.Tensor:
        return ended([interact(bottom, *vectors) for bottom, vectors, _ in lanes])

    @tf.function
    def both() -> tf.Tensor:
        results = []
        for bottom, vectors, upstream in lanes:
            with tf.GradientTape() as tape:
                tape.watch([bottom, vectors])
                output = interact(bottom, *vectors)
            results.append(output)  # otherwise the graph would leave the forward pass out
            results += tape.gradient(output, [bottom, *vectors], output_gradients=upstream)
        return ended(results)

    return lambda: float(forward()), lambda: float(both())


def compare(width: int, dtype: str, rounds: int) -> None:
    """Prints a line for the forward pass and one for forward and backward pass."""
    import tensorflow as tf

    import interact_op
    from dlrm.distributed import devices
    from dlrm.layers.dot_interaction import dot_interaction
    from dlrm.layers.interaction_width import interaction_width

    gpu = bool(tf.config.list_logical_devices("GPU"))
    batch, count = BATCH["GPU" if gpu else "CPU"], devices.lanes()
    columns = interaction_width(width, TABLES)

    def normal(*shape: int) -> Any:
        return tf.Variable(tf.cast(tf.random.normal(shape), dtype))

    half = TABLES // 2
    lanes = [
        (
            normal(batch // count, width),
            [normal(batch // count, half, width) for _ in range(2)],
            normal(batch // count, columns),
        )
        for _ in range(count)
    ]
    source = tf.Variable(tf.ones([batch * columns]))
    copy = tf.function(lambda: source.assign_add(source)[0])
    kinds = {"stock": passes(dot_interaction, lanes), "fused": passes(interact_op.load(), lanes)}
    times: dict[tuple[str, int], list[float]] = {}
    copies = []
    for index in range(rounds + 1):
        copies.append(seconds(lambda: float(copy()), 3))
        for name, functions in kinds.items():
            for which, function in enumerate(functions):
                measured = seconds(function, 5)
                if index:
                    times.setdefault((name, which), []).append(measured)
    bandwidth = 2 * batch * columns * 4 / statistics.median(copies[1:])
    inputs, output = (TABLES + 1) * width, columns
    item = tf.as_dtype(dtype).size
    for which, label, values in (
        (0, "forward", inputs + output),
        (1, "forward and backward", 3 * inputs + 2 * output),
    ):
        stock, fused = times["stock", which], times["fused", which]
        ratio = statistics.median(a / b for a, b in zip(stock, fused))
        rate = values * item * batch / statistics.median(fused)
        print(
            f"  {label:21} stock {statistics.median(stock) * 1e3:7.2f} ms  fused "
            f"{statistics.median(fused) * 1e3:7.2f} ms ({rate / 1e9:.1f} GB/s, "
            f"{rate / bandwidth:.2f} of a copy)  stock / fused {ratio:.2f}"
        )


class StepTimes(Callback):
    """Records the seconds of each step, and the processor seconds of all threads."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self._last = time.perf_counter(), time.process_time()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Called after every step, which has ended because its loss is known."""
        now = time.perf_counter(), time.process_time()
        if step > WARMUP:
            self.wall.append(now[0] - self._last[0])
            self.processor.append(now[1] - self._last[1])
        self._last = now


def compare_steps(rounds: int) -> None:
    """Times steps of the Kaggle shape without and with the fused interaction, in turn."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    trainers = []
    for custom_interact in (False, True):
        config = SHAPES["kaggle"].config(GLOBAL_BATCH, custom_interact=custom_interact)
        collective = join(config)
        backend, _ = embedding.choose(config.embedding.embedding)
        data = SHAPES["kaggle"].data(GLOBAL_BATCH, WARMUP + STEPS, 0, 1)
        trainers.append(build_trainer(config, backend, collective, data, build_model))
    # Kept in memory: generating samples takes as long as a step, reading them a hundredth of it.
    batches = list(data.train)
    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    for index in range(rounds + 1):
        stock, fused = StepTimes(), StepTimes()
        for trainer, times in zip(trainers, (stock, fused)):
            trainer.train([batches], batches, times)
        if index == 0:
            continue
        texts = []
        for kind, found in ratios.items():
            a, b = (statistics.median(getattr(times, kind)) for times in (stock, fused))
            found.append(a / b)
            texts.append(f"{kind} {a * 1e3:.0f} ms, {b * 1e3:.0f} ms ({a / b:.2f})")
        print("  stock, fused: " + "; ".join(texts))
    medians = (f"{kind} {statistics.median(found):.2f}" for kind, found in ratios.items())
    print("  median of ratios: " + ", ".join(medians))


def main() -> int:
    """Prints all comparisons; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="the median counts (default: 7)")
    parser.add_argument(
        "--types",
        default="float32",
        help=f"comma-separated, of {','.join(TYPES)} (default: float32)",
    )
    parser.add_argument("--nostep", action="store_true", help="measure the interaction only")
    parser.add_argument("--steponly", action="store_true", help="measure the training step only")
    options = parser.parse_args()
    from dlrm.distributed import devices

    devices.claim(0, core_per_operation=True)
    for dtype in options.types.split(","):
        for width in () if options.steponly else WIDTHS:
            print(f"{TABLES + 1} vectors of {width} values, {dtype}")
            compare(width, dtype, options.rounds)
    if not options.nostep:
        print(f"training step, {SHAPES['kaggle'].title}, one process")
        compare_steps(options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
