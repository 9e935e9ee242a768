"""Samples/s of an evaluation, compared with those of the training.

    python3 -m benchmarks.evaluation [--shape demo|kaggle|mlperf_mlps] [--ranks 1,2] [--rounds N]

One trainer, with the settings of the shape's preset, takes training steps and evaluates the same
samples in turn. The ratio of the matrix products is 3: a step has two products for each of the
forward pass. Rates are of wall time; those of processor time bear a machine that others use.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.peers.shipped import NEVER, preset_flags, settings_of
    from benchmarks.shapes import DEMO, NUM_DENSE, SHAPES
    from dataset import evaluation_batch
    from dlrm.config import Config
    from dlrm.data import Batches, Data, SyntheticSource
    from dlrm.train.callback import Callback

CASES = {"demo": DEMO, **SHAPES}
BATCHES = {"demo": 2048}  # of the presets; the others have GPUs in mind
BATCH = 8192


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Returns the wall seconds and the processor seconds of an action."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def work(name: str, samples: int, rounds: int, at_once: int | None) -> None:
    """Trains and evaluates on one rank; rank 0 reports the seconds of both in each round."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    batch = BATCHES.get(name, BATCH)
    settings = {**settings_of(preset_flags(name)), "use_synthetic_dataset": True}
    config = Config.of(**settings).replace(
        xla=False,  # for GPUs
        global_batch_size=batch,
        lr=0.1,
        warmup_steps=0,
        epochs=1,
        # No step evaluates, prints or saves.
        eval_interval=NEVER,
        log_interval=NEVER,
        checkpoint_interval=NEVER,
    )
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    source = SyntheticSource(CASES[name].vocab_sizes, NUM_DENSE, samples, seed=0)
    rank, size = collective.rank, collective.size
    train = Batches(source, batch, rank, size, drop_remainder=True)
    whole = at_once or evaluation_batch(batch, samples, size)
    test = Batches(source, whole, rank, size, drop_remainder=False)
    data = Data(train, test, NUM_DENSE, CASES[name].vocab_sizes, {})
    trainer = build_trainer(config, backend, collective, data, build_model)
    train_batches, test_batches = list(train), list(test)  # both are timed without reading
    callback = Callback()
    actions: dict[str, Callable[[], object]] = {
        "train": lambda: trainer.train([train_batches], [], callback),
        "evaluate": lambda: trainer.evaluate(test_batches, 0, callback),
    }
    for action in actions.values():
        action()  # traces its graph
    found: dict[str, Any] = {"batch": batch, "evaluated": whole}
    for part in actions:
        found[part] = []
    for _ in range(rounds):
        for part, action in actions.items():
            found[part].append(timed(action))
    if rank == 0:
        found["steps"] = train.steps
        ranks.report(found)


def main() -> int:
    """Prints the rates and their ratio for each number of ranks; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(CASES), default="demo", help="default: demo")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--samples", type=int, default=1 << 17, help="of a round (default: 131072)")
    parser.add_argument(
        "--at_once", type=int, help="evaluation's batch (default: as main.py has it)"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.shape, options.samples, options.rounds, options.at_once)
        return 0
    arguments = ["--work", "--shape", options.shape, "--rounds", str(options.rounds)]
    arguments += ["--samples", str(options.samples)]
    arguments += [] if options.at_once is None else ["--at_once", str(options.at_once)]
    for number in map(int, options.ranks.split(",")):
        found = ranks.measure(number, "benchmarks.evaluation", arguments)
        trained = found["steps"] * found["batch"]
        ratios = []
        for clock in (0, 1):
            pairs = zip(found["train"], found["evaluate"])
            ratios.append(
                statistics.median(
                    (train[clock] / trained) / (test[clock] / options.samples)
                    for train, test in pairs
                )
            )
        training, evaluation = (
            count / statistics.median(wall for wall, _ in found[part])
            for part, count in (("train", trained), ("evaluate", options.samples))
        )
        print(
            f"{CASES[options.shape].title}, {number} rank{'s' * (number > 1)}: training "
            f"{training:,.0f} samples/s in batches of {found['batch']:,}, evaluation "
            f"{evaluation:,.0f} in batches of {found['evaluated']:,}; median ratio "
            f"{ratios[0]:.2f}, of processor time {ratios[1]:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
