"""Latency, samples/s, memory and start-up time of the scorer, compared with other runtimes.

    python3 -m benchmarks.serve [--shape mlperf_mlps|kaggle] [--rounds N] [--quick]

Every contender runs in a process of its own with two threads and scores the same samples: the
scorer with every type of tables and MLPs, TensorFlow with the SavedModel of the same weights and,
where they are installed, PyTorch and ONNX Runtime. In each round all of them score in turn, batch
size by batch size; ratios are medians over the rounds. The bound is what the float32 products of a
sample would take at the rate of large ones, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.ranks import ROOT
    from benchmarks.serve import worker
    from benchmarks.serve.models import Variant, artifact
    from benchmarks.shapes import NUM_DENSE, SHAPES, Shape
    from serving.row_encoding import TABLE_TYPES, row_bytes

BATCHES = (1, 64, 2048)
PLAIN = Variant("float32", "float32")
VARIANTS = tuple(Variant(tables, dense) for dense in ("float32", "int8") for tables in TABLE_TYPES)
QUICK_VARIANTS = (PLAIN, Variant("int8_rows", "int8"))
# The kinds of contenders that need a package, and the package.
PEERS = {"torch": "torch", "onnx float32": "onnxruntime", "onnx int8": "onnxruntime"}
PEERS_REMEDY = "pip install -r requirements/serving-peers.txt"
TENSORFLOW, PRODUCT = "TensorFlow SavedModel", "product"


def contenders(
    folder: Path, name: str, variants: tuple[Variant, ...]
) -> dict[str, tuple[str, Path]]:
    """The title, kind and folder of each contender; makes the artifacts that are missing."""
    shape = SHAPES[name]
    plain = artifact(folder, shape, PLAIN, saved_model=True)
    found = {TENSORFLOW: ("saved_model", plain)}
    for kind, package in PEERS.items():
        if importlib.util.find_spec(package):
            found[kind] = kind, plain
    for variant in variants:
        path = plain if variant == PLAIN else artifact(folder, shape, variant)
        found[f"scorer {variant.tables} / {variant.dense}"] = "scorer", path
    return found


def forward_operations(shape: Shape) -> int:
    """The floating-point operations of one sample in all matrix products."""
    from dlrm.layers.interaction_width import interaction_width

    model = shape.config(1).model
    tables = len(shape.vocab_sizes)
    layers = (
        [NUM_DENSE, *model.bottom_mlp],
        [
            interaction_width(model.embedding_dim, tables),
            *model.top_mlp,
        ],
    )
    pairs = tables * (tables + 1) // 2 * model.embedding_dim
    return 2 * (sum(a * b for units in layers for a, b in zip(units, units[1:])) + pairs)


def measure(
    name: str, found: dict[str, tuple[str, Path]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Scores in turn; returns for each contender its start and what it answered by batch size."""
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for title, (kind, folder) in {**found, PRODUCT: ("product", Path())}.items():
            workers[title] = stack.enter_context(worker.running(kind, name, folder))
            figures[title] = {
                "startup": workers[title].startup,
                "opened": workers[title].resident,
                **{size: [] for size in BATCHES},
            }
        for index in range(rounds + 1):
            for size in BATCHES:
                for title, contender in workers.items():
                    answer = contender.score(size, seconds)
                    if index:
                        figures[title][size].append(answer)
    return figures


def report(name: str, figures: dict[str, Any], found: dict[str, tuple[str, Path]]) -> None:
    """Prints a table of each batch size, and one of memory and start-up."""
    shape = SHAPES[name]
    product = figures.pop(PRODUCT)
    own = {title for title, (kind, _) in found.items() if kind == "scorer"}
    baselines = [title for title in figures if title not in own]
    operations = forward_operations(shape)

    def latencies(title: str, size: int) -> Any:
        return np.array([answer["median"] for answer in figures[title][size]])

    for size in BATCHES:
        rate = 2 * worker.SQUARE**3 / np.array([answer["median"] for answer in product[size]])
        print(
            f"\n{shape.title}, batch {size}; bound at {np.median(rate) / 1e9:.0f} GFLOP/s: "
            f"{np.median(rate) / operations:,.0f} samples/s"
        )
        others = "".join(f"{'/ ' + title.split()[0] + ' ' * 12:.13}" for title in baselines)
        print(f"  {'':36}{'latency':>12}{'samples/s':>12}{'of bound':>10}  {others}")
        for title in figures:
            seconds = latencies(title, size)
            bound = size * operations / rate
            ratios = "".join(
                f"{np.median(latencies(other, size) / seconds):<13.2f}" for other in baselines
            )
            form = figures[title][size][0]["form"]
            print(
                f"  {title + (f' ({form})' if form else ''):36}"
                f"{statistics.median(seconds) * 1e6:>9,.0f} us"
                f"{size / np.median(seconds):>12,.0f}{np.median(bound / seconds):>10.2f}  {ratios}"
            )
    print(f"\n{shape.title}: memory and start-up")
    reference = np.array(figures[TENSORFLOW][BATCHES[0]][0]["logits"])
    width = shape.config(1).model.embedding_dim
    for title, figure in figures.items():
        last = figure[BATCHES[-1]][-1]
        kind, folder = found[title]
        tables = folder.name.partition("-")[0] if kind == "scorer" else PLAIN.tables
        difference = np.abs(np.array(last["logits"]) - reference).max()
        print(
            f"  {title:36}{row_bytes(tables, width):>5} bytes a row, {figure['opened'] >> 20:>6,} "
            f"MiB opened, {last['resident'] >> 20:>6,} MiB after scoring, started in "
            f"{figure['startup']:5.2f} s, logits within {difference:.1e} of TensorFlow's"
        )


def main() -> int:
    """Prints all comparisons; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), action="append", help="default: all, one after another"
    )
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="of each measurement (default: 0.3)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="float32 and the smallest variant of the scorer alone"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "serve_benchmark",
        help="where models are kept for the next run (default: build/serve_benchmark)",
    )
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        kind, shape, folder = flags.work
        worker.work(kind, shape, Path(folder))
        return 0
    missing = {package for package in PEERS.values() if not importlib.util.find_spec(package)}
    if missing:
        print(f"without {' and '.join(sorted(missing))}; to compare with them: {PEERS_REMEDY}")
    for name in flags.shape or SHAPES:
        variants = QUICK_VARIANTS if flags.quick else VARIANTS
        found = contenders(flags.folder / name, name, variants)
        report(name, measure(name, found, flags.rounds, flags.seconds), found)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
