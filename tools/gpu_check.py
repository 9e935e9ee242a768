"""Checks what a GPU host can do: a verdict a line, in order, and the same as JSON.

    python3 -m tools.gpu_check                                            one GPU
    horovodrun -np 8 ./hvd_wrapper.sh python3 -m tools.gpu_check          eight
    python3 -m tools.gpu_check --cpu --batch 512                          what needs no GPU

Ends with 1 if anything failed, or if there is no GPU and --cpu was not given. Sums over samples
and rows are taken in other orders on GPUs, so results are compared within stated bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

from dlrm.formats.zip_strict import zip_strict

# Read when TensorFlow is imported: its notices would hide our lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import interact_op
from dataset import open_data
from dlrm import embedding
from dlrm.checkpoint.directory import finished
from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest
from dlrm.checkpoint.restore import restore
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import Run, State
from dlrm.config import Config
from dlrm.data import Data
from dlrm.distributed import devices
from dlrm.distributed.collective import Collective
from dlrm.reporting import results_table
from dlrm.reporting.machine import hardware, versions
from dlrm.reporting.results_table import settings_columns
from dlrm.train.build import build_trainer, join
from dlrm.train.callback import Callback
from dlrm.train.loop import Trainer
from model import build_model
from tools.gpu_expected import VOCAB_SIZES, WIDTH, id_cases, interaction_error, table_error

TABLE_BOUND = 1e-5  # relative; float32 sums in another order
LOSS_BOUND = 1e-4  # relative, over the steps below
AMP_BOUND = 2e-2  # relative; float16 has 11 bits
TABLES, WIDTHS = 26, (16, 128)
INTERACT_BOUNDS = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}
STEPS, STRETCH, STRETCHES = 10, 10, 5
SHOWN = ("tensorflow", "keras", "horovod", "merlin-sok")

Found = tuple[str, Any]
"""What a check saw, in words and as data."""


class SkippedError(Exception):
    """This cannot be checked here."""


class FailedError(Exception):
    """A check's expectation was not met; the second argument is its data."""


def expect(met: bool, words: str, data: Any = None) -> None:
    """Fails the check unless `met`."""
    if not met:
        raise FailedError(words, data)


def require_gpu() -> None:
    """Skips what has kernels for GPUs only."""
    if not devices.has_gpu():
        raise SkippedError("no GPU")


class Losses(Callback):
    """Keeps the loss and the time of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """A step ended."""
        self.losses.append(loss)
        self.times.append(time.perf_counter())


class Bench:
    """The ranks, and what all training checks share: the small MLPerf shape on made-up data.

    Args:
        collective: the ranks.
        batch: samples of a step over all ranks.
    """

    def __init__(self, collective: Collective, batch: int) -> None:
        self.collective = collective
        self.batch = batch

    def config(self, **settings: Any) -> Config:
        """So many steps that each say their loss, if not told otherwise."""
        shared = {"early_stop": STEPS, "log_interval": 1, "lr": 0.1, "warmup_steps": 0}
        batch = self.batch
        return Config.of(
            use_synthetic_dataset=True, global_batch_size=batch, **{**shared, **settings}
        )

    def data(self, config: Config) -> Data:
        """This rank's share of the data."""
        return open_data(config, self.collective.rank, self.collective.size)

    def trainer(self, config: Config) -> Trainer:
        """Tables and model from the settings' seed."""
        gc.collect()  # the tables of the check before
        backend, _ = embedding.choose(config.embedding.embedding)
        return build_trainer(config, backend, self.collective, self.data(config), build_model)

    def train(self, trainer: Trainer, config: Config) -> Losses:
        """Trains from the start of the data."""
        losses = Losses()
        trainer.train([self.data(config).train], [], losses)
        return losses


Check = Callable[[Bench], Found]


def on_devices(bench: Bench) -> Found:
    """Versions, GPUs and their memory."""
    size, machine = bench.collective.size, hardware()
    free = devices.free_memory(bench.collective.local_size)
    found = {**versions(), "ranks": size, "free_bytes": free, **machine}
    shown = [f"{name} {found[name]}" for name in SHOWN if name in found]
    return f"{'; '.join(shown)}; {size} ranks; {machine['gpus'] or 'no GPU'}", found


def on_tables(backend: str) -> Check:
    """A check of lookup and update for plain, repeated, no and out-of-range ids."""

    def check(bench: Bench) -> Found:
        if backend != "alltoall":
            require_gpu()
        table = embedding.FusedTable(VOCAB_SIZES, WIDTH, seed=3)
        errors = {}
        for case in id_cases(bench.collective.size):
            settings: dict[str, Any] = {"compress": case.compress, "bad_ids": case.bad_ids}
            tables = embedding.create(backend, table, bench.collective, gpu_gib=1, **settings)
            error = table_error(tables, bench.collective, case)
            errors[f"{case.name}{', compressed' * case.compress}"] = error
        data = {"errors": errors, "bound": TABLE_BOUND}
        name, worst = max(errors.items(), key=lambda item: item[1])
        expect(worst <= TABLE_BOUND, f"{name}: error {worst:.1e}, at most {TABLE_BOUND:.0e}", data)
        return f"{len(errors)} cases, largest error {worst:.1e}", data

    return check


def on_interaction(bench: Bench) -> Found:
    """The fused interaction against float64, at the shapes that it is tuned for."""
    try:
        interact = interact_op.load()
    except OSError as error:
        raise SkippedError(str(error)) from error
    errors: dict[str, float] = {}
    for dtype, bound in INTERACT_BOUNDS.items():
        errors[dtype] = worst = max(
            interaction_error(interact, dtype, TABLES, width) for width in WIDTHS
        )
        expect(worst <= bound, f"{dtype}: error {worst:.1e}, at most {bound:.0e}", errors)
    found = ", ".join(f"{dtype} {worst:.1e}" for dtype, worst in errors.items())
    return (
        f"{TABLES + 1} vectors of {' and '.join(map(str, WIDTHS))} values: largest error {found}",
        errors,
    )


def follows(bound: float, first: dict[str, Any], second: dict[str, Any]) -> Check:
    """A check that training with the second settings has the losses of the first."""

    def check(bench: Bench) -> Found:
        if "sok" in (first.get("embedding"), second.get("embedding")):
            require_gpu()
        configs = [bench.config(**settings) for settings in (first, second)]
        runs = [bench.train(bench.trainer(config), config).losses for config in configs]
        return compared(bound, *runs)

    return check


def compared(bound: float, first: list[float], second: list[float]) -> Found:
    """Holds two runs' losses to each other."""
    error = max(abs(a - b) / abs(a) for a, b in zip_strict(first, second))
    words = f"losses differ by {error:.1e}, at most {bound:.0e}: "
    words += "; ".join(f"{a:.6f} {b:.6f}" for a, b in zip(first, second))
    data = {"losses": [first, second], "difference": error, "bound": bound}
    expect(error <= bound, words, data)
    return words, data


def carries_over(first: str, second: str) -> Check:
    """A check that the second backend goes on from the first one's checkpoint."""

    def check(bench: Bench) -> Found:
        if "sok" in first or "sok" in second:
            require_gpu()
        configs = [bench.config(embedding=backend) for backend in (first, second)]
        old, new = (bench.trainer(config) for config in configs)
        bench.train(old, configs[0])
        carry_over(bench, configs[0], old, new)
        runs = [bench.train(*pair).losses for pair in zip((old, new), configs)]
        return compared(LOSS_BOUND, *runs)

    return check


def carry_over(bench: Bench, config: Config, old: Trainer, new: Trainer) -> None:
    """Writes one trainer's state and reads it into the other."""
    collective, tables = bench.collective, old.step.embedding.table
    num_dense = bench.data(config).num_dense
    units = config.model.bottom_mlp, config.model.top_mlp
    shape = ModelShape(num_dense, tables.vocab_sizes, config.model.embedding_dim, *units)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(collective.gather_text(name)[0])  # rank 0's, for all of this machine
        run = Run(shape, config.flat(), {})
        checkpoints = Checkpoints(folder, collective, run, keep=1)
        checkpoints.save(State(old.step.dense, old.step.embedding), Position(1, 0, 0))
        (path,) = finished(folder)
        restore(path, read_manifest(path), State(new.step.dense, new.step.embedding), collective)
        collective.gather_text("")  # all have read before the folder goes


def on_speed(bench: Bench) -> Found:
    """Samples/s of the whole step with each switch, as rows of the benchmark's table."""
    backend = embedding.choose("auto").name
    every = {"compress": True, "xla": True, "amp": True}
    switches = [{}, {"compress": True}, {"xla": True}, {"amp": True}, every]
    with contextlib.suppress(OSError):
        interact_op.load()
        switches += [{"custom_interact": True}, {**every, "custom_interact": True}]
    rows = [speed(bench, backend, switch) for switch in switches]
    if backend != "alltoall":
        rows += [speed(bench, "alltoall", switch) for switch in ({}, every)]
    return f"global batch {bench.batch}\n{results_table(rows)}", rows


def speed(bench: Bench, backend: str, switch: dict[str, Any]) -> dict[str, object]:
    """A row of the table: the median over stretches of steps, the first one left out."""
    steps = STRETCH * (STRETCHES + 1)
    config = bench.config(embedding=backend, early_stop=steps, log_interval=STRETCH, **switch)
    times = bench.train(bench.trainer(config), config).times
    seconds = statistics.median(b - a for a, b in zip(times, times[1:])) / STRETCH
    minutes = (times[-1] - times[0]) / 60
    return {
        **settings_columns(config.flat(), bench.batch),
        "exit_criterion": f"{steps} steps, {backend}",
        "training_minutes": minutes,
        "evaluation_minutes": 0.0,
        "total_minutes": minutes,
        "ms_per_iteration": seconds * 1e3,
        "samples_per_second": bench.batch / seconds,
    }


CHECKS: dict[str, Check] = {
    "devices": on_devices,
    **{f"{name} against NumPy": on_tables(name) for name in ("alltoall", "sok", "sok_dynamic")},
    "interaction against NumPy": on_interaction,
    "alltoall and sok": follows(LOSS_BOUND, {"embedding": "alltoall"}, {"embedding": "sok"}),
    "sok and sok_dynamic": follows(LOSS_BOUND, {"embedding": "sok"}, {"embedding": "sok_dynamic"}),
    "float32 and AMP": follows(AMP_BOUND, {}, {"amp": True}),
    "with and without XLA": follows(LOSS_BOUND, {}, {"xla": True}),
    "checkpoint, alltoall to alltoall": carries_over("alltoall", "alltoall"),
    "checkpoint, sok to alltoall": carries_over("sok", "alltoall"),
    "checkpoint, alltoall to sok": carries_over("alltoall", "sok"),
    "checkpoint, sok_dynamic to sok": carries_over("sok_dynamic", "sok"),
    "speed": on_speed,
}


def verdict(name: str, bench: Bench) -> dict[str, Any]:
    """Runs one check; what is printed and kept of it."""
    start, data = time.perf_counter(), None
    try:
        words, data = CHECKS[name](bench)
        result = "pass"
    except SkippedError as error:
        result, words = "skip", str(error)
    except FailedError as error:
        result, words, data = "FAIL", *error.args
    except (ValueError, OSError, tf.errors.OpError) as error:
        result, words = "FAIL", " ".join(str(error).split())
    seconds = time.perf_counter() - start
    return {"check": name, "verdict": result, "words": words, "seconds": seconds, "data": data}


def main() -> int:
    """Prints a line a check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--batch", type=int, default=65536, help="samples of a step")
    parser.add_argument("--cpu", action="store_true", help="check what needs no GPU")
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), default=list(CHECKS))
    flags = parser.parse_args()
    collective = join(Config.of(use_synthetic_dataset=True))
    if not devices.has_gpu() and not flags.cpu:
        print("error: expected a GPU, found none; set --cpu for what needs none", file=sys.stderr)
        return 1
    bench = Bench(collective, flags.batch)
    found = []
    for name in flags.only:
        # What failed on one rank failed for all.
        texts = collective.gather_text(json.dumps(verdict(name, bench), default=str))
        ranks = [json.loads(text) for text in texts]
        order = ["FAIL", "skip", "pass"]
        found.append(min(ranks, key=lambda rank: order.index(rank["verdict"])))
        if collective.rank == 0:
            line = found[-1]
            print(
                f"{line['verdict']}  {name:34} {line['seconds']:6.1f} s  {line['words']}",
                flush=True,
            )
    count = Counter(line["verdict"] for line in found)
    if collective.rank == 0:
        flags.json.write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"{count['pass']} passed, {count['FAIL']} failed, {count['skip']} skipped: {flags.json}"
        )
    return int(count["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
