"""Training samples/s with each optimizer of the tables, compared with plain SGD's.

    python3 -m benchmarks.optimizers [--shape demo|kaggle|mlperf_mlps] [--batch N] [--rounds N]
        [--steps N] [--ranks N] [NAME ...]

NAME is an optimizer; by default all of them are measured. The optimizers run in turn, each round
begins and ends with SGD, and a rate is divided by the mean of SGD's two of its round: so all see
the same machine. The dense layers keep SGD.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import CASES, FUSED
    from benchmarks.step import WARMUP, Clock
    from dlrm.config.optimizer import TABLE_OPTIMIZERS


def work(name: str, shape_name: str, batch: int, steps: int) -> None:
    """Trains on one rank with the optimizer of a name; rank 0 reports the samples/s."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    shape = CASES[shape_name]
    config = shape.config(batch, compress=True, optimizer=name, **FUSED)
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = shape.data(batch, WARMUP + steps, collective.rank, collective.size)
    trainer = build_trainer(config, backend, collective, data, build_model)
    clock = Clock([])
    batches = list(data.train)  # in memory, as in benchmarks/step.py
    trainer.train([batches], batches, clock)
    if collective.rank == 0:
        ranks.report(batch / statistics.median(clock.steps))


def main() -> int:
    """Prints a line per round and the medians of the ratios; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all optimizers")
    parser.add_argument("--shape", choices=sorted(CASES), default="kaggle")
    parser.add_argument("--batch", type=int, default=8192, help="global batch (default: 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps that count (default: 20)")
    parser.add_argument("--ranks", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.names[0], options.shape, options.batch, options.steps)
        return 0
    for name in options.names:
        if name not in TABLE_OPTIMIZERS:
            raise ValueError(f"expected NAME of {', '.join(TABLE_OPTIMIZERS)}, found {name}")
    names = [name for name in options.names or TABLE_OPTIMIZERS if name != "sgd"]
    arguments = ["--work", "--shape", options.shape]
    arguments += ["--batch", str(options.batch), "--steps", str(options.steps)]
    print(f"{CASES[options.shape].title}, batch {options.batch}, ranks {options.ranks}, samples/s")

    def rate(name: str) -> float:
        found: float = ranks.measure(options.ranks, "benchmarks.optimizers", [*arguments, name])
        return found

    ranks.compare_in_turn(rate, "sgd", names, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
