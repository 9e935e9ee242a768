"""Builds the parts of a run: the ranks, the tables, the model and their trainer.

Used by a run, and by benchmarks and checks that train without one. Settings come as a Config.
"""

from __future__ import annotations

import math
import os
from typing import Callable

import keras

from dlrm import embedding
from dlrm.config import Config
from dlrm.data import Data
from dlrm.distributed import devices
from dlrm.distributed.collective import Collective
from dlrm.distributed.connect import connect
from dlrm.distributed.host_memory import keep_freed_memory
from dlrm.train.evaluation import Evaluator
from dlrm.train.instruments import Instruments
from dlrm.train.loop import Trainer
from dlrm.train.memory import check_memory
from dlrm.train.optimizers import DENSE_STATE, dense_optimizer, row_optimizer
from dlrm.train.products import product_rate, products
from dlrm.train.step import TrainingStep
from dlrm.train.step_profiler import StepProfiler, Trace

NO_LIMIT = 1e6  # seconds
# The variables by which a program knows that Nsight Systems watches it, and the steps that it is
# shown in parts if none are named: within the 30 steps of the SOK benchmark's command.
NSYS = {"NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH"}
NSYS_STEPS = range(10, 20)

BuildModel = Callable[[Config], keras.Model]


def join(config: Config) -> Collective:
    """Joins the other ranks and takes this rank's GPU or cores. Comes before any tensor.

    Raises:
        ValueError: The ranks cannot be joined.
    """
    timeout = 2 * config.run.stall_timeout or NO_LIMIT
    collective = connect(timeout, timeline=config.profile.profile is not None)
    devices.claim(collective.local_rank, core_per_operation=not _wide_operations(config))
    return collective


def place_tables(config: Config, collective: Collective, data: Data) -> tuple[str, str]:
    """Chooses the backend of the tables and checks that everything fits into memory.

    Returns:
        The backend, and a line for the user that says why, and what a rank needs.

    Raises:
        ValueError: On every rank, if the backend cannot run on one or the memory does not suffice.
    """
    backend, why = collective.together(lambda: embedding.choose(config.embedding.embedding))
    collective.agree("the embedding's backend", backend)
    table = fused_table(config, data)
    layout = embedding.RowLayout(table, row_optimizer(config.optimizer).state_columns(table.width))
    # All ranks look at what is free before any of them allocates its part.
    need = collective.together(
        lambda: check_memory(
            backend,
            layout,
            config.model,
            config.embedding,
            collective,
            max(data.train.local_batch, data.test.local_batch),
            data.num_dense,
            DENSE_STATE[config.optimizer.dense_optimizer],
            data.bag_layout.ids_per_sample if data.bag_layout else 0,
        )
    )
    reason = f" ({why})" if why else ""
    return backend, f"embedding: {backend}{reason}; a rank needs {need}"


def fused_table(config: Config, data: Data) -> embedding.FusedTable:
    """Describes the embedding tables as one."""
    return embedding.FusedTable(data.vocab_sizes, config.model.embedding_dim, config.run.seed)


def most_lanes(config: Config) -> int:
    """Counts the lanes that may compute a batch at the same time.

    It is one if operations of the dense part use all cores themselves.
    """
    return 1 if _wide_operations(config) else devices.lanes()


def _wide_operations(config: Config) -> bool:
    """Whether the dense part consists of few operations that use all cores: XLA's or fused ones."""
    return config.model.xla or config.model.fuses_mlps_on_cpus


def build_tables(
    config: Config, backend: str, collective: Collective, data: Data, groups: int
) -> embedding.Embedding:
    """Builds this rank's part of the tables. All ranks call it together.

    Args:
        config: The settings.
        backend: Where the rows lie; see `embedding.create`.
        collective: The ranks.
        data: The data, opened.
        groups: Number of groups of tables, looked up and updated independently.
    """
    return embedding.create(
        backend,
        fused_table(config, data),
        collective,
        optimizer=row_optimizer(config.optimizer),
        gpu_gib=config.embedding.sok_gpu_gb,
        sok_rows=config.embedding.sok_rows,
        admit_after=config.embedding.admit_after,
        evict_after=config.embedding.evict_after,
        compress=config.embedding.compress,
        bad_ids=config.embedding.bad_ids,
        exchange_dtype=config.model.compute_dtype,
        table_groups=groups,
        bag_layout=data.bag_layout,
    )


def build_trainer(
    config: Config, backend: str, collective: Collective, data: Data, build_model: BuildModel
) -> Trainer:
    """Builds tables, model and trainer. All ranks call it together.

    Args:
        config: The settings.
        backend: Where the rows lie; see `embedding.create`.
        collective: The ranks.
        data: The data, opened.
        build_model: Builds the dense part; it must not use the collective.

    Raises:
        ValueError: On every rank, if the dense part cannot be built on one.
    """
    lanes = math.gcd(most_lanes(config), data.train.local_batch)
    tables = build_tables(config, backend, collective, data, groups=most_lanes(config))
    step = TrainingStep(
        # The fused interaction may be missing on one machine alone.
        collective.together(lambda: build_model(config)),
        tables,
        dense_optimizer(config.optimizer),
        collective,
        num_dense=data.num_dense,
        local_batch=config.data.global_batch_size // collective.size,
        lanes=lanes,
        loss_scale=config.model.loss_factor,
        sum_over_ranks=config.optimizer.embedding_grad == "sum",
        dense_rate=config.optimizer.rate_of_dense / config.optimizer.lr,
        clip_norm=config.optimizer.clip_norm,
        compiled=config.model.whole_graph_xla,
    )
    step.build()
    if not devices.has_gpu():
        keep_freed_memory()
    return Trainer(
        step,
        Evaluator(config.evaluation.auc_thresholds, collective),
        collective,
        config.optimizer.schedule(config.data.global_batch_size),
        config.run,
        config.evaluation,
        log_interval=config.report.log_interval,
        checkpoint_interval=config.checkpoint.checkpoint_interval,
        steps_per_epoch=data.train.steps,
        warmup_steps=config.report.benchmark_warmup_steps,
        instruments=build_instruments(config, step, collective, lanes),
    )


def build_instruments(
    config: Config, step: TrainingStep, collective: Collective, lanes: int
) -> Instruments:
    """Builds what watches the steps. All ranks call it together.

    Args:
        config: The settings.
        step: The step, built.
        collective: The ranks.
        lanes: Number of lanes of the step.
    """
    shown, note = config.profile.steps, ""
    # It may watch one rank alone, but all take the same steps in parts.
    watched = collective.gather_text("watched" if NSYS & os.environ.keys() else "")
    if any(watched) and not shown:
        shown = NSYS_STEPS
        note = (
            f"Nsight Systems watches: every second one of steps {shown.start} to {shown.stop} is "
            "taken in parts; --profile=FIRST:LAST names others"
        )
    if not shown and not config.profile.step_breakdown:
        return Instruments()
    run_dir, model = config.report.run_dir, config.model

    def products_seconds() -> float:
        tables = len(step.embedding.table.vocab_sizes)
        dense, _, _ = step.batch_specs
        samples, num_dense = dense.shape
        each = products(num_dense, tables, model.bottom_mlp, model.top_mlp, model.interaction_shape)
        return samples * each / product_rate(lanes, model.compute_dtype)

    return StepProfiler(
        step,
        collective,
        shown=shown,
        trace=Trace(os.path.join(run_dir, "profile"), collective)
        if config.profile.profile and run_dir
        else None,
        breakdown=config.profile.step_breakdown,
        products_seconds=products_seconds,
        folder=run_dir,
        note=note,
    )
