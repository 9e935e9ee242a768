"""SOK's backends on a CPU: sok.py KERNELS FOLDER [CHECK ...].

KERNELS is the library of emulated kernels. Runs the checks of tools.gpu_check that a GPU host would
run, and three of what the tables keep; rank 0 writes what came of them to FOLDER/found.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sparse_operation_kit
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.directory import finished
from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest
from dlrm.checkpoint.restore import restore
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import Config
from dlrm.embedding import FusedTable, create
from dlrm.embedding import sok_storage as sok
from dlrm.optim.adaptive_rows import RowAdagrad
from dlrm.train.build import join
from tools.gpu_check.checks import CHECKS, run_check
from tools.gpu_check.setup import CheckResult, CheckSetup, expect

BATCH = 96


def check_state(setup: CheckSetup) -> CheckResult:
    """Adagrad's rows and state in SOK's tables, against TensorFlow's variable."""
    table, collective = FusedTable((50, 1, 900), width=8, seed=3), setup.collective
    every = {
        backend: create(backend, table, collective, optimizer=RowAdagrad(), gpu_gib=1)
        for backend in ("alltoall", "sok", "sok_dynamic")
    }
    rng = np.random.default_rng(collective.rank)
    for _ in range(4):
        ids = tf.constant(rng.random((BATCH, 3)) ** 2 * table.vocab_sizes, tf.int32)
        gradients = tf.constant(rng.standard_normal((BATCH, 3, 8)), tf.float32)
        for tables in every.values():
            lookup = tables.lookup(tables.route(ids))
            tables.update(lookup, [gradients], tf.constant(0.1), 0.5)
    expected, *others = (tables.read_rows(0, tables.local_rows) for tables in every.values())
    # Relative: the sums of squares grow large, and SOK's order of keys changes their last bits.
    error = max(
        float((np.abs(found - expected) / (1 + expected**2) ** 0.5).max()) for found in others
    )
    expect(error < 1e-5, f"error {error:.1e}")
    fresh = create("sok_dynamic", table, collective, optimizer=RowAdagrad(), gpu_gib=1)
    fresh.write_rows(np.arange(len(expected)), expected)
    same = np.array_equal(fresh.read_rows(0, fresh.local_rows), expected)
    expect(same, "what was written is not what is read")
    return CheckResult(f"largest error {error:.1e}", error)


def check_occurring(setup: CheckSetup) -> CheckResult:
    """SOK's table with rows of occurring ids: what a checkpoint asks of it, against our own."""
    table, collective = FusedTable((2**31 - 1, 7, 2**31 - 1), width=8, seed=3), setup.collective
    ours, sok_table, other = (
        create(backend, table, collective, optimizer=RowAdagrad(), gpu_gib=1, sok_rows=rows)
        for backend, rows in (("dynamic", 0), ("sok_dynamic", 1000), ("sok_dynamic", 1000))
    )
    rng = np.random.default_rng(collective.rank)
    for step in range(1, 4):
        ids = tf.constant(rng.random((BATCH, 3)) ** 9 * table.vocab_sizes, tf.int32)
        gradients = tf.constant(rng.standard_normal((BATCH, 3, 8)), tf.float32)
        for tables in (ours, sok_table):
            tables.begin_step(step)
            tables.update(tables.lookup(tables.route(ids)), [gradients], tf.constant(0.1), 0.5)
    for tables in (ours, sok_table):
        tables.fetch(tf.fill([BATCH, 3], 6))  # ids of an evaluation get no rows
    assert ours.dynamic
    assert sok_table.dynamic
    assert other.dynamic
    expected, found = ours.dynamic.sightings(), sok_table.dynamic.sightings()
    expect(np.array_equal(found.keys, expected.keys), "other keys have rows")
    expect(found.rows == expected.rows == len(found.keys), "a key has no row")
    expect(bool((found.counts == (1, 3)).all()), "keys were seen once, in the present step")
    rows = [tables.read_rows(0, found.rows) for tables in (ours, sok_table)]
    error = float((np.abs(rows[0] - rows[1]) / (1 + rows[0] ** 2) ** 0.5).max())
    expect(error < 1e-5, f"error {error:.1e}")
    parts = [sok_table.read_rows(*piece) for piece in ((0, 5), (5, 9), (9, found.rows))]
    expect(np.array_equal(np.concatenate(parts), rows[1]), "parts are not the whole")
    other.dynamic.put(found, rows[1])
    expect(np.array_equal(other.dynamic.sightings().keys, found.keys), "keys were lost")
    expect(np.array_equal(other.read_rows(0, found.rows), rows[1]), "rows were changed")
    other.dynamic.clear()
    expect(other.dynamic.sightings().rows == 0, "keys were left")
    fresh = create("sok_dynamic", table, collective, optimizer=RowAdagrad(), gpu_gib=1, sok_rows=9)
    same = np.array_equal(*(t.lookup(t.route(ids)).vectors[0].numpy() for t in (other, fresh)))
    expect(same, "what was forgotten does not begin anew")
    return CheckResult(f"{found.rows} rows, largest error {error:.1e}", error)


def check_wider(setup: CheckSetup) -> CheckResult:
    """The checkpoint of one day in the wider tables of the next: SOK's rows, and our own."""
    worst = 0.0
    for ours, sok_settings in (
        ({"backend": "alltoall"}, {"backend": "sok"}),
        ({"backend": "alltoall"}, {"backend": "sok_dynamic"}),
        ({"backend": "dynamic"}, {"backend": "sok_dynamic", "sok_rows": 2000}),
    ):
        expected, found = (on_the_next_day(setup, s) for s in (ours, sok_settings))
        expect(expected.shape == found.shape, f"{sok_settings}: {len(found)} rows")
        # Relative: 96 gradients of one row are summed in another order.
        error = np.abs(expected - found) / (1 + np.abs(expected))
        worst = max(worst, float(error.max()))
    expect(worst < 1e-5, f"error {worst:.1e}")
    return CheckResult(f"largest error {worst:.1e}", worst)


def on_the_next_day(setup: CheckSetup, settings: dict[str, Any]) -> NDArray[Any]:
    """Trains a step in small tables; returns this rank's rows once a checkpoint was widened."""
    collective, days = setup.collective, ((50, 1, 900), (60, 1, 1100))
    before, after = (
        create(table=FusedTable(sizes, 8, seed=3), collective=collective, gpu_gib=1, **settings)
        for sizes in days
    )
    rng = np.random.default_rng(collective.rank)
    ids = tf.constant(rng.random((BATCH, 3)) * days[0], tf.int32)
    gradients = tf.constant(rng.standard_normal((BATCH, 3, 8)), tf.float32)
    before.begin_step(1)
    before.update(before.lookup(before.route(ids)), [gradients], tf.constant(0.5), 1.0)
    shape = ModelShape(1, days[0], 8, (8,), (1,), dynamic=before.dynamic is not None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(collective.gather_text(name)[0])  # rank 0's
        checkpoints = Checkpoints(folder, collective, RunRecord(shape, {}, {}), keep=1)
        checkpoints.save(State({}, before), Position(1, 0, 0))
        (path,) = finished(folder)
        state = State({}, after)
        restore(path, read_manifest(path), state, collective, vocab_sizes=days[1])
        collective.gather_text("")  # all ranks have read before the folder is removed
    count = after.local_rows if after.dynamic is None else after.dynamic.sightings().rows
    return after.read_rows(0, count)


def main(kernels: str, folder: str, checks: list[str]) -> None:
    """Runs the checks."""
    tf.load_library(kernels)
    sok.load = lambda: sparse_operation_kit
    CHECKS["an optimizer's state"] = check_state
    CHECKS["rows of occurring ids"] = check_occurring
    CHECKS["wider tables"] = check_wider
    collective = join(Config.of(use_synthetic_dataset=True))
    setup = CheckSetup(collective, BATCH)
    setup.require_gpu = lambda: None  # type: ignore[method-assign]
    found = [run_check(name, setup) for name in checks]
    texts = collective.gather_text(json.dumps(found, default=str))
    if collective.rank == 0:
        Path(folder, "found.json").write_text(json.dumps([json.loads(text) for text in texts]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
