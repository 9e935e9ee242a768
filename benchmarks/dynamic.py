"""Training samples/s with rows for the ids that occur, compared with a row for every id.

    python3 -m benchmarks.dynamic [--shape demo|kaggle|mlperf_mlps] [--batch N] [--rounds N]
        [--steps N] [--ranks N]

`dynamic` is `--embedding=dynamic`, `admitted` with `--admit_after=1 --evict_after=1000`, and
`sparse ids` is dynamic with tables of 2^31 - 1 ids, whose keys have 64 bits. They run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import CASES, FUSED
    from benchmarks.step import WARMUP, Clock

ALL_ROWS = "all rows"
DYNAMIC = {"embedding": "dynamic"}
WAYS: dict[str, dict[str, Any]] = {
    ALL_ROWS: {},
    "dynamic": DYNAMIC,
    "admitted": {**DYNAMIC, "admit_after": 1, "evict_after": 1000},
    "sparse ids": DYNAMIC,
}


def work(name: str, shape_name: str, batch: int, steps: int) -> None:
    """Trains on one rank in the way of a name; rank 0 reports the samples/s."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    shape = CASES[shape_name]
    config = shape.config(batch, compress=True, **FUSED, **WAYS[name])
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = shape.data(batch, WARMUP + steps, collective.rank, collective.size)
    if name == "sparse ids":
        data = data._replace(vocab_sizes=(2**31 - 1,) * len(data.vocab_sizes))
    trainer = build_trainer(config, backend, collective, data, build_model)
    clock = Clock([])
    batches = list(data.train)  # in memory, as in benchmarks/step.py
    trainer.train([batches], batches, clock)
    if collective.rank == 0:
        ranks.report(batch / statistics.median(clock.steps))


def main() -> int:
    """Prints a line per round and the medians of the ratios; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(CASES), default="kaggle")
    parser.add_argument("--batch", type=int, default=8192, help="global batch (default: 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps that count (default: 20)")
    parser.add_argument("--ranks", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--work", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.shape, options.batch, options.steps)
        return 0
    arguments = ["--shape", options.shape]
    arguments += ["--batch", str(options.batch), "--steps", str(options.steps)]
    print(f"{CASES[options.shape].title}, batch {options.batch}, ranks {options.ranks}, samples/s")

    def rate(name: str) -> float:
        found: float = ranks.measure(
            options.ranks, "benchmarks.dynamic", [*arguments, "--work", name]
        )
        return found

    others = [name for name in WAYS if name != ALL_ROWS]
    ranks.compare_in_turn(rate, ALL_ROWS, others, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
