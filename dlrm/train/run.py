"""One run: joins the ranks, opens the data, builds model and tables, and hands them to a session.

Puts the pieces together; each piece is its own module. Knows the settings as a Config, never a
flag.
"""

from __future__ import annotations

import math
import time
from typing import Callable

import keras
import tensorflow as tf

from dlrm import embedding
from dlrm.config import Config
from dlrm.data import Data
from dlrm.distributed import devices, sharding
from dlrm.distributed.collective import Collective, connect
from dlrm.distributed.watchdog import Watchdog
from dlrm.reporting import Reporter
from dlrm.train import memory as memory_plan
from dlrm.train.loop import Trainer
from dlrm.train.optimizers import row_optimizer
from dlrm.train.session import Session

NO_LIMIT = 1e6  # seconds
FAILURE_SECONDS = 5.0  # for the watchdog to learn which rank broke an exchange


OpenData = Callable[[Config, int, int], Data]
BuildModel = Callable[[Config], keras.Model]


def run(config: Config, open_data: OpenData, build_model: BuildModel) -> bool:
    """Trains, or evaluates a checkpoint, as the settings say.

    Args:
        config: the settings.
        open_data: opens the data for a rank of so many.
        build_model: builds the dense part.

    Returns:
        Whether it came to its end; False if a signal stopped it, after a checkpoint was written.

    Raises:
        ValueError: one line for the user; raised on every rank where all can know of it.
        OSError: likewise.
    """
    begin = time.perf_counter()
    collective = join(config)
    data = collective.together(lambda: open_data(config, collective.rank, collective.size))
    collective.agree("the training and test data", (len(data.train), len(data.test), data[2:5]))
    collective.agree("the settings", config.replace(run_dir=None))
    backend, why = collective.together(lambda: embedding.choose(config.embedding.embedding))
    collective.agree("the embedding's backend", backend)
    # Every rank has counted what is free before any of them takes its part.
    memory = collective.together(lambda: check_memory(backend, config, collective, data))
    if collective.rank == 0:
        for note in data.notes:
            print(note, flush=True)
        print(
            f"embedding: {backend}{f' ({why})' if why else ''}; a rank needs {memory}", flush=True
        )
    trainer = build_trainer(config, collective, data, build_model)
    reporter = collective.together(lambda: make_reporter(config, collective, data))
    watchdog = Watchdog(
        collective,
        config.run.stall_timeout,
        exit_hook=reporter.fail,
        catch_signals=config.checkpoint.checkpoint_dir is not None and config.run.mode == "train",
    )
    try:
        with watchdog:
            session = Session(config, collective, data, trainer, reporter, watchdog)
            try:
                return session.evaluate() if config.run.mode == "test" else session.train(begin)
            except tf.errors.OpError as error:
                raise ValueError(
                    watchdog.wait_for_failure(FAILURE_SECONDS)
                    or f"rank {collective.rank}: an exchange failed or an operation could not run, "
                    "most likely because another rank stopped, whose own message says why; "
                    f"TensorFlow's words: {' '.join(error.message.split())[-300:]}"
                ) from error
    except (ValueError, OSError, KeyboardInterrupt) as error:
        reporter.fail(str(error) or "interrupted")
        raise


def join(config: Config) -> Collective:
    """Joins the other ranks and takes this rank's GPU or cores. Comes before any tensor.

    Raises:
        ValueError: the ranks cannot be joined.
    """
    collective = connect(2 * config.run.stall_timeout or NO_LIMIT)
    devices.claim(collective.local_rank, core_per_operation=not config.model.xla)
    return collective


def check_memory(backend: str, config: Config, collective: Collective, data: Data) -> str:
    """Holds what this rank will need to what is free.

    Returns:
        The need in words.

    Raises:
        ValueError: it does not fit.
    """
    rank, size = collective.rank, collective.size
    table = embedding.FusedTable(data.vocab_sizes, config.model.embedding_dim, config.run.seed)
    layout = embedding.RowLayout(table, row_optimizer(config.optimizer).state_columns(table.width))
    rows = sharding.local_rows(table.rows, rank, size)
    need = memory_plan.step_need(
        rows=rows,
        tables=len(table.vocab_sizes),
        width=table.width,
        state_width=layout.width - table.width,
        local_batch=config.data.global_batch_size // size,
        value_bytes=tf.as_dtype(config.model.compute_dtype).size,
        units=(*config.model.bottom_mlp, *config.model.top_mlp),
    )
    where = {"rows": rows, "ranks": size}
    if backend == "sok_dynamic":
        need, host = memory_plan.dynamic_needs(
            need,
            slots=embedding.dynamic_capacity(rows),
            width=layout.width,
            gpu_bytes=config.embedding.sok_gpu_gb * memory_plan.GIB,
        )
        free = devices.free_host_memory()
        share = None if free is None else free // collective.local_size
        memory_plan.check(host, share, place="the host's memory", remedy="", **where)
        remedy = "; a smaller --sok_gpu_gb leaves more rows to the host"
    else:
        remedy = "; --embedding=sok_dynamic lets rows lie in the host's memory" * (backend == "sok")
    place = "the GPU's memory" if devices.has_gpu() else "this machine's memory"
    free = devices.free_memory(collective.local_size)
    memory_plan.check(need, free, place=place, remedy=remedy, **where)
    return memory_plan.describe(need, rows)


def build_trainer(
    config: Config, collective: Collective, data: Data, build_model: BuildModel
) -> Trainer:
    """Builds tables, model and trainer; tables and weights depend on the settings alone."""
    # XLA makes one program of the dense part, which uses all cores by itself.
    lanes = 1 if config.model.xla else math.gcd(devices.lanes(), data.train.local_batch)
    tables = embedding.create(
        embedding.choose(config.embedding.embedding).name,
        embedding.FusedTable(data.vocab_sizes, config.model.embedding_dim, config.run.seed),
        collective,
        optimizer=row_optimizer(config.optimizer),
        gpu_gib=config.embedding.sok_gpu_gb,
        compress=config.embedding.compress,
        bad_ids=config.embedding.bad_ids,
        exchange_dtype=config.model.compute_dtype,
        table_groups=lanes,
    )
    return Trainer(
        config, build_model(config), tables, collective, num_dense=data.num_dense, lanes=lanes
    )


def make_reporter(config: Config, collective: Collective, data: Data) -> Reporter:
    """The reporter of this run.

    Raises:
        ValueError: run_dir cannot be written.
    """
    steps = config.run.epochs * len(data.train)
    return Reporter(
        config.report.run_dir,
        config.flat(),
        rank=collective.rank,
        size=collective.size,
        global_batch=config.data.global_batch_size,
        total_steps=min(steps, config.run.early_stop) if config.run.early_stop > 0 else steps,
    )
