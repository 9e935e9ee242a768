"""What exchanges between ranks cost: steps of one process beside two ranks, and empty exchanges.

    python3 -m benchmarks.exchange [--shape demo|kaggle|mlperf_mlps] [--rounds N] [--steps N]
    python3 -m benchmarks.exchange --empty

For each shape, one process on all cores, two ranks on the same cores, and two ranks that exchange
through Horovod run in turn, several times. Beside the time of a step stand the processor time that
all ranks spend on it, their context switches, and rank 0's exchanges: how many, of how many bytes,
and how long it is in them, which includes waiting for the other rank.

With --empty, two ranks exchange four bytes at a time, through Horovod with several cycle times,
without its cache, and without Horovod; and it is measured what a rank spends that exchanges
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import CASES
    from dlrm.train.callback import Callback

BATCHES = {"demo": 2048, "kaggle": 8192, "mlperf_mlps": 8192}
STEPS = {"demo": 400, "kaggle": 60, "mlperf_mlps": 20}
WINDOW = 5  # steps of which one time is taken: reading a loss costs as much as a short exchange
WARMUP = 2  # windows that do not count
HOROVOD = {"DLRM_EXCHANGE": "horovod"}
CYCLE_TIMES = ("0.05", "0.2", "1", "5")  # milliseconds
EMPTY = 200  # exchanges of four bytes


def spent() -> dict[str, float]:
    """What this process has spent: seconds, seconds of its processors, context switches."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter(),
        "cpu": usage.ru_utime + usage.ru_stime,
        "switches": usage.ru_nvcsw + usage.ru_nivcsw,
    }


class Windows(Callback):
    """What this process spends on each `WINDOW` steps of a training loop."""

    def __init__(self) -> None:
        self.spent: list[dict[str, float]] = []

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Called after the last step of a window, which has ended because its loss is known."""
        self.spent.append(spent())

    def of_a_step(self) -> dict[str, float]:
        """The median over the windows, for one step."""
        counted = self.spent[WARMUP:]
        pairs = list(zip(counted, counted[1:]))
        return {
            what: statistics.median((b[what] - a[what]) / WINDOW for a, b in pairs)
            for what in counted[0]
        }


def work(shape: str, steps: int, compress: bool) -> None:
    """Trains on one rank; rank 0 reports the figures of all."""
    from dlrm import embedding
    from dlrm.train.build import build_trainer, join
    from model import build_model

    batch = BATCHES[shape]
    config = CASES[shape].config(
        batch, compress=compress, custom_interact=True, custom_mlp=True, log_interval=WINDOW
    )
    collective = join(config)
    backend, _ = embedding.choose(config.embedding.embedding)
    data = CASES[shape].data(batch, steps, collective.rank, collective.size)
    trainer = build_trainer(config, backend, collective, data, build_model)
    windows = Windows()
    batches = list(data.train)  # kept in memory: generating samples takes as long as a short step
    with tempfile.TemporaryDirectory() as folder:
        events: list[dict[str, Any]] = []
        timeline = Path(folder, "timeline.json")
        if through_links(collective):
            collective.start_timeline(str(timeline))
        trainer.train([batches], batches, windows)
        if through_links(collective):
            collective.stop_timeline()
            events = json.loads(timeline.read_text()) if collective.rank == 0 else []
    mine = windows.of_a_step()
    every = [json.loads(text) for text in collective.gather_text(json.dumps(mine))]
    if collective.rank == 0:
        ranks.report(
            {
                "wall": mine["wall"],
                "cpu": sum(each["cpu"] for each in every),
                "switches": sum(each["switches"] for each in every),
                "exchanges": summary(events[len(events) // 4 :]),
            }
        )


def through_links(collective: Any) -> bool:
    """Whether the ranks exchange without Horovod, whose timeline has another form."""
    from dlrm.distributed.host_collective import HostCollective

    return isinstance(collective, HostCollective)


def summary(events: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median bytes and microseconds of the exchanges of each name."""
    names = dict.fromkeys(event["name"] for event in events)
    return {
        name: {
            "bytes": statistics.median(e["args"]["bytes"] for e in events if e["name"] == name),
            "us": statistics.median(e["dur"] for e in events if e["name"] == name),
        }
        for name in names
    }


def work_empty() -> None:
    """Exchanges nothing for a while, then four bytes at a time; rank 0 reports."""
    import tensorflow as tf

    from dlrm.distributed import devices
    from dlrm.distributed.connect import connect

    collective = connect()
    devices.claim(collective.local_rank, core_per_operation=True)
    value, splits = tf.ones([2]), tf.ones([2], tf.int32)
    mean = tf.function(lambda: collective.mean([value], "mean"), autograph=False)
    same = tf.function(lambda: collective.alltoall(value, splits, "same"), autograph=False)
    # As keys and vectors, whose number differs from step to step.
    several = tf.function(
        lambda rows, counts: collective.alltoall(rows, counts, "several"),
        input_signature=[tf.TensorSpec([None]), tf.TensorSpec([2], tf.int32)],
        autograph=False,
    )

    def median(exchange: Callable[[int], object]) -> float:
        seconds = []
        for number in range(EMPTY):
            begin = time.perf_counter()
            exchange(number)
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds) * 1e6

    figures = {
        "all-reduce": median(lambda number: mean()),
        "all-to-all": median(lambda number: same()),
        "of other sizes": median(lambda number: several(tf.ones([2 + number % 7]), splits)),
    }
    before = spent()
    time.sleep(2)
    after = spent()
    figures["idle"] = (after["cpu"] - before["cpu"]) / (after["wall"] - before["wall"])
    if collective.rank == 0:
        ranks.report(figures)
    collective.gather_text("")  # no rank ends before


def measure(size: int, arguments: list[str], environment: Mapping[str, str]) -> Any:
    """Runs this module on so many ranks, with variables of the environment."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        return ranks.measure(size, "benchmarks.exchange", ["--work", *arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)


def print_empty() -> None:
    """Prints what an exchange of four bytes takes, and what none costs."""
    print(f"{'two ranks':34}{'all-reduce':>12}{'all-to-all':>12}{'other sizes':>13}{'idle':>8}")
    kinds = {f"Horovod, a cycle of {c} ms": {"HOROVOD_CYCLE_TIME": c} for c in CYCLE_TIMES}
    kinds["Horovod, 0.2 ms, no cache"] = {"HOROVOD_CACHE_CAPACITY": "0"}
    for kind, environment in {**kinds, "without Horovod": {}}.items():
        through = HOROVOD if environment else {}
        figures = measure(2, ["--empty"], {**through, **environment})
        print(
            f"{kind:34}{figures['all-reduce']:9.0f} us{figures['all-to-all']:9.0f} us"
            f"{figures['of other sizes']:10.0f} us{figures['idle']:8.1%}"
        )


def print_shape(shape: str, rounds: int, steps: int, compress: bool) -> None:
    """Prints a line for each run of a shape, and the medians of the ratios."""
    print(f"{CASES[shape].title}, batch {BATCHES[shape]}")
    arguments = ["--shape", shape, "--steps", str(steps)] + ["--compress"] * compress
    kinds = {"one process": (1, {}), "two ranks": (2, {}), "two, Horovod": (2, HOROVOD)}
    runs: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (size, environment) in kinds.items():
            figures = measure(size, arguments, environment)
            runs[kind].append(figures)
            print(
                f"  {kind:13}{figures['wall'] * 1e3:8.2f} ms of a step, "
                f"{figures['cpu'] * 1e3:8.2f} ms of processors, {figures['switches']:4.0f} switches"
            )
    for name, exchange in runs["two ranks"][-1]["exchanges"].items():
        print(f"    {name:16}{exchange['bytes']:12,.0f} bytes{exchange['us']:9.0f} us")
    for kind in list(kinds)[1:]:
        pairs = list(zip(runs["one process"], runs[kind]))
        speeds = sorted(one["wall"] / two["wall"] for one, two in pairs)
        print(
            f"  {kind} / one process: samples/s {statistics.median(speeds):.2f} "
            f"({speeds[0]:.2f} - {speeds[-1]:.2f}), processors "
            f"{statistics.median(two['cpu'] / one['cpu'] for one, two in pairs):.2f}"
        )


def main() -> int:
    """Measures what the options name; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", choices=list(CASES), action="append", help="default: all, one by one"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("--steps", type=int, help="steps of a run (demo 400, kaggle 60, else 20)")
    parser.add_argument("--compress", action="store_true", help="send repeated keys once")
    parser.add_argument("--empty", action="store_true", help="exchange four bytes at a time")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = options.shape or list(CASES)
    if options.work:
        if options.empty:
            work_empty()
        else:
            work(shapes[0], options.steps, options.compress)
    elif options.empty:
        print_empty()
    else:
        for shape in shapes:
            print_shape(shape, options.rounds, options.steps or STEPS[shape], options.compress)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
