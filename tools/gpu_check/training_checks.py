"""The checks that train: equal losses, a checkpoint of another backend, and the speed of a step."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import interact_op
from dlrm import embedding
from dlrm.checkpoint.directory import finished
from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest
from dlrm.checkpoint.restore import restore
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import Config
from dlrm.formats.zip_strict import zip_strict
from dlrm.reporting.results_table import results_table, settings_columns
from dlrm.train.loop import Trainer
from tools.gpu_check.setup import Check, CheckResult, CheckSetup, expect

LOSS_BOUND = 1e-4  # relative, over the steps of a training
AMP_BOUND = 2e-2  # relative; float16 has 11 bits
STRETCH, STRETCHES = 10, 5  # steps of a time measurement, measurements


def same_losses(bound: float, first: dict[str, Any], second: dict[str, Any]) -> Check:
    """Returns a check that training with the second settings has the losses of the first.

    Args:
        bound: The largest relative difference allowed.
        first: Settings by name, over those of `CheckSetup.config`.
        second: Settings by name, in the same way.
    """

    def check(setup: CheckSetup) -> CheckResult:
        if any("sok" in settings.get("embedding", "") for settings in (first, second)):
            setup.require_gpu()
        configs = [setup.config(**settings) for settings in (first, second)]
        losses = [setup.train(setup.trainer(config), config).losses for config in configs]
        return compare_losses(bound, *losses)

    return check


def compare_losses(bound: float, first: list[float], second: list[float]) -> CheckResult:
    """Compares the losses of two trainings.

    Raises:
        FailedError: A relative difference exceeds `bound`.
    """
    error = max(abs(a - b) / abs(a) for a, b in zip_strict(first, second))
    pairs = "; ".join(f"{a:.6f} {b:.6f}" for a, b in zip(first, second))
    summary = f"losses differ by {error:.1e}, at most {bound:.0e}: {pairs}"
    data = {"losses": [first, second], "difference": error, "bound": bound}
    expect(error <= bound, summary, data)
    return CheckResult(summary, data)


def continues_from_checkpoint(first: dict[str, Any], second: dict[str, Any]) -> Check:
    """Returns a check that the second settings continue from the checkpoint of the first."""

    def check(setup: CheckSetup) -> CheckResult:
        if any("sok" in settings["embedding"] for settings in (first, second)):
            setup.require_gpu()
        configs = [setup.config(**settings) for settings in (first, second)]
        old, new = (setup.trainer(config) for config in configs)
        setup.train(old, configs[0])
        transfer(setup, configs[0], old, new)
        losses = [setup.train(*pair).losses for pair in zip((old, new), configs)]
        return compare_losses(LOSS_BOUND, *losses)

    return check


def transfer(setup: CheckSetup, config: Config, old: Trainer, new: Trainer) -> None:
    """Writes a checkpoint of one trainer and reads it into the other."""
    collective, tables = setup.collective, old.step.embedding.table
    num_dense = setup.data(config).num_dense
    units = config.model.bottom_mlp, config.model.top_mlp
    shape = ModelShape(
        num_dense,
        tables.vocab_sizes,
        config.model.embedding_dim,
        *units,
        dynamic=config.embedding.keeps_occurring_ids,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(collective.gather_text(name)[0])  # rank 0's, for all ranks of this machine
        run = RunRecord(shape, config.flat(), {})
        checkpoints = Checkpoints(folder, collective, run, keep=1)
        checkpoints.save(State(old.step.dense, old.step.embedding), Position(1, 0, 0))
        (path,) = finished(folder)
        restore(path, read_manifest(path), State(new.step.dense, new.step.embedding), collective)
        collective.gather_text("")  # all ranks have read before the folder is removed


def measure_speed(setup: CheckSetup) -> CheckResult:
    """Measures the whole step with each switch, as rows of the benchmark's results table."""
    backend = embedding.choose("auto").name
    every = {"compress": True, "xla": True, "amp": True}
    switches = [{}, {"compress": True}, {"xla": True}, {"amp": True}, every]
    with contextlib.suppress(OSError):  # it is not built
        interact_op.load()
        switches += [{"custom_interact": True}, {**every, "custom_interact": True}]
    rows = [speed_row(setup, backend, switch) for switch in switches]
    if backend != "alltoall":
        rows += [speed_row(setup, "alltoall", switch) for switch in ({}, every)]
    return CheckResult(f"global batch {setup.batch}\n{results_table(rows)}", rows)


def speed_row(setup: CheckSetup, backend: str, switch: dict[str, Any]) -> dict[str, object]:
    """Returns a row of the table: the median over stretches of steps, without the first one."""
    steps = STRETCH * (STRETCHES + 1)
    config = setup.config(embedding=backend, early_stop=steps, log_interval=STRETCH, **switch)
    times = setup.train(setup.trainer(config), config).times
    seconds = statistics.median(b - a for a, b in zip(times, times[1:])) / STRETCH
    minutes = (times[-1] - times[0]) / 60
    return {
        **settings_columns(config.flat(), setup.batch),
        "exit_criterion": f"{steps} steps, {backend}",
        "training_minutes": minutes,
        "evaluation_minutes": 0.0,
        "total_minutes": minutes,
        "ms_per_iteration": seconds * 1e3,
        "samples_per_second": setup.batch / seconds,
    }
