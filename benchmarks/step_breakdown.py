"""What --step_breakdown costs: steps as they are and steps in parts, in turn.

    python3 -m benchmarks.step_breakdown [--shape mlperf_mlps|kaggle] [--batch N] [--steps N]

The ratio of both gives the cost: of every `PERIOD` steps, one is taken in parts. One process and
two ranks are measured, on the same cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import SHAPES

WARMUP = 4  # steps that do not count, of each kind


def work(shape: str, batch: int, steps: int) -> None:
    """Trains on one rank; rank 0 reports the seconds of a step of each kind."""
    import contextlib
    import time

    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from dlrm.train.callback import Callback
    from dlrm.train.health import Health
    from dlrm.train.instruments import Instruments, StepInputs, Train
    from dlrm.train.staged_step import StagedStep
    from dlrm.train.step import Routes, TrainingStep
    from model import build_model

    class InTurn(Instruments):
        """Times steps, every second one of which is taken in parts."""

        def __init__(self, step: TrainingStep) -> None:
            self.seconds: tuple[list[float], list[float]] = ([], [])
            self._staged = StagedStep(step, lambda part: contextlib.nullcontext())

        def take(self, number: int, train: Train, inputs: StepInputs) -> tuple[Health, Routes]:
            begin = time.perf_counter()
            health, routes = (train, self._staged.train)[number % 2](*inputs)
            float(health.loss)  # the step has ended
            self.seconds[number % 2].append(time.perf_counter() - begin)
            return health, routes

    config = SHAPES[shape].config(batch, compress=True)
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = SHAPES[shape].data(batch, 2 * (WARMUP + steps), collective.rank, collective.size)
    trainer = build_trainer(config, backend, collective, data, build_model)
    trainer.instruments = in_turn = InTurn(trainer.step)
    trainer.train([data.train], data.train, Callback())
    if collective.rank == 0:
        ranks.report([statistics.median(seconds[WARMUP:]) for seconds in in_turn.seconds])


def main() -> int:
    """Prints a line for each number of ranks; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mlperf_mlps")
    parser.add_argument("--batch", type=int, default=8192, help="samples of a step (8192)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each kind (20)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.shape, options.batch, options.steps)
        return 0
    from dlrm.train.step_profiler import PERIOD

    arguments = ["--work", "--shape", options.shape]
    arguments += ["--batch", str(options.batch), "--steps", str(options.steps)]
    print(f"{SHAPES[options.shape].title}, batch {options.batch}, ms of a step")
    for size in (1, 2):
        plain, staged = ranks.measure(size, "benchmarks.step_breakdown", arguments)
        print(
            f"  ranks {size}: as it is {plain * 1e3:.1f}, in parts {staged * 1e3:.1f} "
            f"({staged / plain:.2f} times), cost of one in {PERIOD} "
            f"{(staged / plain - 1) / PERIOD:.2%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
