"""The list of checks, the checks of single components, and how a check is run."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

import interact_op
from dlrm import embedding
from dlrm.distributed import devices
from dlrm.formats.quantities import plural
from dlrm.reporting.machine import hardware, versions
from tools.gpu_check.expected import VOCAB_SIZES, WIDTH, id_cases, interaction_error, table_error
from tools.gpu_check.setup import (
    Check,
    CheckResult,
    CheckSetup,
    FailedError,
    SkippedError,
    expect,
)
from tools.gpu_check.training_checks import (
    AMP_BOUND,
    LOSS_BOUND,
    continues_from_checkpoint,
    measure_speed,
    same_losses,
)

TABLE_BOUND = 1e-5  # relative; float32 sums in another order
INTERACT_TABLES, INTERACT_WIDTHS = 26, (16, 128)  # the fused interaction is tuned for these
INTERACT_BOUNDS = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}  # relative
PACKAGES = ("tensorflow", "keras", "horovod", "merlin-sok")  # in the summary


def check_devices(setup: CheckSetup) -> CheckResult:
    """Reports versions, GPUs and their memory."""
    size, machine = setup.collective.size, hardware()
    free = devices.free_memory(setup.collective.local_size)
    found = {**versions(), "ranks": size, "free_bytes": free, **machine}
    packages = "; ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    summary = f"{packages}; {plural(size, 'rank')}; {machine['gpus'] or 'no GPU'}"
    return CheckResult(summary, found)


def tables_match_numpy(backend: str) -> Check:
    """Returns a check of lookup and update for plain, repeated, no and out-of-range ids."""

    def check(setup: CheckSetup) -> CheckResult:
        if backend != "alltoall":
            setup.require_gpu()
        table = embedding.FusedTable(VOCAB_SIZES, WIDTH, seed=3)
        errors = {}
        for case in id_cases(setup.collective.size):
            settings: dict[str, Any] = {"compress": case.compress, "bad_ids": case.bad_ids}
            tables = embedding.create(backend, table, setup.collective, gpu_gib=1, **settings)
            errors[case.name] = table_error(tables, setup.collective, case)
        data = {"errors": errors, "bound": TABLE_BOUND}
        name, worst = max(errors.items(), key=lambda item: item[1])
        expect(worst <= TABLE_BOUND, f"{name}: error {worst:.1e}, at most {TABLE_BOUND:.0e}", data)
        return CheckResult(f"{len(errors)} cases, largest error {worst:.1e}", data)

    return check


def interaction_matches_numpy(setup: CheckSetup) -> CheckResult:
    """Compares the fused interaction with float64, at the shapes that it is tuned for."""
    try:
        interact = interact_op.load()
    except OSError as error:
        raise SkippedError(str(error)) from error
    errors: dict[str, float] = {}
    for dtype, bound in INTERACT_BOUNDS.items():
        errors[dtype] = worst = max(
            interaction_error(interact, dtype, INTERACT_TABLES, width) for width in INTERACT_WIDTHS
        )
        expect(worst <= bound, f"{dtype}: error {worst:.1e}, at most {bound:.0e}", errors)
    widths = " and ".join(map(str, INTERACT_WIDTHS))
    largest = ", ".join(f"{dtype} {worst:.1e}" for dtype, worst in errors.items())
    summary = f"{INTERACT_TABLES + 1} vectors of {widths} values: largest error {largest}"
    return CheckResult(summary, errors)


ALLTOALL, DYNAMIC = {"embedding": "alltoall"}, {"embedding": "dynamic"}
SOK, SOK_DYNAMIC = {"embedding": "sok"}, {"embedding": "sok_dynamic"}
SOK_OCCURRING = {**SOK_DYNAMIC, "sok_rows": 1 << 20}  # rows of the ids alone that occur

CHECKS: dict[str, Check] = {
    "devices": check_devices,
    "alltoall against NumPy": tables_match_numpy("alltoall"),
    "sok against NumPy": tables_match_numpy("sok"),
    "sok_dynamic against NumPy": tables_match_numpy("sok_dynamic"),
    "interaction against NumPy": interaction_matches_numpy,
    "alltoall and sok": same_losses(LOSS_BOUND, ALLTOALL, SOK),
    "sok and sok_dynamic": same_losses(LOSS_BOUND, SOK, SOK_DYNAMIC),
    "float32 and AMP": same_losses(AMP_BOUND, {}, {"amp": True}),
    "with and without XLA": same_losses(LOSS_BOUND, {}, {"xla": True}),
    "checkpoint, alltoall to alltoall": continues_from_checkpoint(ALLTOALL, ALLTOALL),
    "checkpoint, sok to alltoall": continues_from_checkpoint(SOK, ALLTOALL),
    "checkpoint, alltoall to sok": continues_from_checkpoint(ALLTOALL, SOK),
    "checkpoint, sok_dynamic to sok": continues_from_checkpoint(SOK_DYNAMIC, SOK),
    "checkpoint, sok_dynamic to dynamic": continues_from_checkpoint(SOK_OCCURRING, DYNAMIC),
    "checkpoint, dynamic to sok_dynamic": continues_from_checkpoint(DYNAMIC, SOK_OCCURRING),
    "speed": measure_speed,
}


def run_check(name: str, setup: CheckSetup) -> dict[str, Any]:
    """Runs one check; returns its entry of the JSON file."""
    start, data = time.perf_counter(), None
    try:
        summary, data = CHECKS[name](setup)
        verdict = "pass"
    except SkippedError as error:
        verdict, summary = "skip", str(error)
    except FailedError as error:
        verdict, summary, data = "FAIL", *error.args
    except (ValueError, OSError, tf.errors.OpError) as error:
        verdict, summary = "FAIL", " ".join(str(error).split())
    seconds = time.perf_counter() - start
    return {"check": name, "verdict": verdict, "words": summary, "seconds": seconds, "data": data}
