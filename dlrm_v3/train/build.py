"""Builds the parts of a run: the data and its settings, the tables, the model and their trainer.

Used by a run, and by benchmarks and checks that train without one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from dlrm import embedding
from dlrm.distributed.collective import Collective
from dlrm.optim.adaptive_dense import DenseAdam
from dlrm.optim.adaptive_rows import RowWiseAdagrad
from dlrm_v3 import hstu_op
from dlrm_v3.data.stream import RequestStream, open_stream
from dlrm_v3.model.hstu import build_model
from dlrm_v3.train.loop import Lifetime, StreamTrainer
from dlrm_v3.train.memory import check_memory
from dlrm_v3.train.plan import StreamPlan
from dlrm_v3.train.prepare import reader
from dlrm_v3.train.settings import StreamTraining, settings_of
from dlrm_v3.train.step import TABLES, HstuStep

XLA_TOKENS = 2048  # tokens are padded to a multiple of it, as XLA compiles for every number


class StreamParts(NamedTuple):
    """The parts of a run that do not change.

    Attributes:
        settings: All settings.
        stream: The data.
        plan: Which requests each step takes.
        collective: The ranks.
    """

    settings: StreamTraining
    stream: RequestStream
    plan: StreamPlan
    collective: Collective


def open_parts(flags: argparse.Namespace, collective: Collective) -> StreamParts:
    """Opens the data, and checks that all ranks have the same data and settings.

    Raises:
        ValueError: On every rank, if the data of one is unusable or the ranks differ.
    """

    def opened() -> tuple[RequestStream, StreamTraining, StreamPlan]:
        stream = open_stream(Path(flags.data_dir))
        settings = settings_of(flags, stream.config, stream.preset)
        options = settings.options
        if options.fused is None:
            options.fused = not options.xla and hstu_op.is_built()
        plan = StreamPlan(
            stream,
            settings.learning.global_batch_size,
            options.seed,
            collective.rank,
            collective.size,
            first=options.first_timestamp,
            last=options.last_timestamp,
        )
        return stream, settings, plan

    stream, settings, plan = collective.together(opened)
    collective.agree("the data", stream.fingerprint)
    agreed = {name: value for name, value in settings.flat().items() if name != "run_dir"}
    collective.agree("the settings", agreed)
    return StreamParts(settings, stream, plan, collective)


def fused_table(parts: StreamParts) -> embedding.FusedTable:
    """Describes the tables of items, categories and users as one."""
    model, stream = parts.settings.model, parts.stream.config
    sizes = (stream.items, stream.categories, model.user_rows)
    return embedding.FusedTable(
        sizes, model.width, parts.settings.options.seed, initial_range=model.table_range
    )


def place_tables(parts: StreamParts) -> tuple[str, str]:
    """Chooses the backend of the tables and checks that everything fits into memory.

    Returns:
        The backend, and a line for the user that says why, and what a rank needs.

    Raises:
        ValueError: On every rank, if the backend cannot run on one or the memory does not suffice.
    """
    settings, collective, stream = parts.settings, parts.collective, parts.stream.config
    candidates = stream.candidates if settings.trains else stream.inference_candidates
    backend, why = collective.together(lambda: embedding.choose(settings.options.embedding))
    collective.agree("the embedding's backend", backend)
    table = fused_table(parts)
    layout = embedding.RowLayout(table, RowWiseAdagrad().state_columns(table.width))
    need = collective.together(
        lambda: check_memory(
            backend,
            layout,
            settings.model,
            settings.options.sok_gpu_gb,
            collective,
            local_batch=-(-settings.learning.global_batch_size // collective.size),
            max_length=1 + settings.model.max_history + candidates,
            value_bytes=tf.as_dtype(settings.compute_dtype).size,
        )
    )
    reason = f" ({why})" if why else ""
    return backend, f"embedding: {backend}{reason}; a rank needs up to {need}"


def build_trainer(parts: StreamParts, backend: str) -> StreamTrainer:
    """Builds tables, model and trainer. All ranks call it together.

    Args:
        parts: What the run consists of.
        backend: Where the rows lie: `alltoall`, `sok` or `sok_dynamic`.

    Raises:
        ValueError: On every rank, if the model cannot be built on one.
    """
    settings, stream, plan, collective = parts
    config, learning, options = settings.model, settings.learning, settings.options
    dtype = settings.compute_dtype
    tables = embedding.create(
        backend,
        fused_table(parts),
        collective,
        optimizer=RowWiseAdagrad(learning.table_epsilon),
        compress=options.compress,
        exchange_dtype=dtype,
        table_groups=TABLES,
        gpu_gib=options.sok_gpu_gb,
    )
    model = collective.together(
        lambda: build_model(
            config,
            max_length=options.max_length,
            seed=options.seed,
            dtype=f"mixed_{dtype}" if options.amp else dtype,
            fused=options.fused,
            xla=options.xla,
        )
    )
    lifetime = Lifetime.empty()
    step = HstuStep(
        model,
        tables,
        DenseAdam(learning.dense_betas, learning.dense_epsilon),
        collective,
        config,
        nominal_candidates=learning.global_batch_size * stream.config.candidates,
        loss_scale=settings.loss_scale,
        state=lifetime.named(),
    )
    return StreamTrainer(
        step,
        lifetime,
        plan,
        reader(stream, config.max_history, XLA_TOKENS if options.xla else 1),
        collective,
        learning,
        task=config.tasks.index("rating"),
        seed=options.seed,
        early_stop=options.early_stop,
        log_interval=options.log_interval,
        checkpoint_timestamps=options.checkpoint_timestamps,
    )
