"""The fused interaction beside the one of plain TensorFlow, and the training step with each.

    python3 -m benchmarks.interact [--rounds N] [--nostep]

Forward and backward pass of both run in turn in one process, in as many lanes side by side as the
training step has, so that both see the same machine; the ratio is the median of each round's. Bytes
are those that must move: every input read once, every result written once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

from benchmarks.step import start

BATCH, TABLES, WIDTHS = {"CPU": 8192, "GPU": 65536}, 26, (16, 128)
TYPES = ("float32", "float16", "bfloat16")


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call, the median of some."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def passes(interact: Any, lanes: list[Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass of every lane; forward and backward pass of every lane."""
    import tensorflow as tf

    def ended(tensors: list[tf.Tensor]) -> tf.Tensor:
        # Nothing is left out of the graph, and a GPU has finished when the value is here.
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
            results += tape.gradient(output, [bottom, *vectors], output_gradients=upstream)
        return ended(results)

    return lambda: float(forward()), lambda: float(both())


def compare(width: int, dtype: str, rounds: int) -> None:
    """Prints a line for the forward pass and one for both."""
    import tensorflow as tf

    import devices
    import interact_op
    from model import dot_interaction, interaction_width

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


def compare_steps(rounds: int) -> None:
    """Prints the Kaggle shape's samples/s without and with the fused interaction."""
    ratios = []
    for _ in range(rounds):
        stock, fused = (
            start(1, ["--shape", "kaggle", *flags])["samples_per_second"]
            for flags in ([], ["--custom_interact"])
        )
        ratios.append(fused / stock)
        print(f"  stock {stock:,.0f} samples/s  fused {fused:,.0f}  fused / stock {ratios[-1]:.2f}")
    print(f"  median of ratios {statistics.median(ratios):.2f}")


def main() -> None:
    """Prints all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--types", default="float32", help=f"of {','.join(TYPES)}")
    parser.add_argument("--nostep", action="store_true", help="the interaction alone")
    options = parser.parse_args()
    import devices

    devices.claim(0, whole_operations=True)
    for dtype in options.types.split(","):
        for width in WIDTHS:
            print(f"{TABLES + 1} vectors of {width} values, {dtype}")
            compare(width, dtype, options.rounds)
    if not options.nostep:
        print("training step, Kaggle shape, one process")
        compare_steps(3)


if __name__ == "__main__":
    main()
