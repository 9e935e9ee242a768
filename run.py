"""One run: joins the ranks, opens the data, builds model and tables, trains, reports.

Puts the pieces together; each piece is its own module. Knows the settings as a Config, never a
flag.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import NamedTuple

import tensorflow as tf

import devices
import embedding
from collective import Collective, connect
from config import Config
from dataset import (
    SYNTHETIC_NUM_DENSE,
    SYNTHETIC_TEST_SAMPLES,
    SYNTHETIC_TRAIN_SAMPLES,
    SYNTHETIC_VOCAB_SIZES,
    Batches,
    Source,
    SyntheticSource,
    open_split,
)
from model import DLRM
from reporting import Reporter
from trainer import Trainer


class Data(NamedTuple):
    """This rank's batches, and what the model must know of them."""

    train: Batches
    test: Batches
    num_dense: int
    vocab_sizes: tuple[int, ...]


def run(config: Config) -> None:
    """Trains as the settings say.

    Raises:
        ValueError: one line for the user; raised on every rank where all can know of it.
        OSError: likewise.
    """
    begin = time.perf_counter()
    collective = join(config)
    data = collective.together(lambda: open_data(config, collective))
    collective.agree("the training and test data", (len(data.train), len(data.test), data[2:]))
    collective.agree("the settings", dataclasses.replace(config, run_dir=None))
    trainer = build_trainer(config, collective, data)

    steps = config.epochs * len(data.train)
    reporter = collective.together(
        lambda: Reporter(
            config.run_dir,
            dataclasses.asdict(config),
            rank=collective.rank,
            size=collective.size,
            global_batch=config.global_batch_size,
            total_steps=min(steps, config.early_stop) if config.early_stop > 0 else steps,
        )
    )
    collective.together(reporter.start)
    start = time.perf_counter()
    try:
        outcome = trainer.train([data.train] * config.epochs, data.test, reporter)
    except tf.errors.OpError as error:
        message = (
            f"rank {collective.rank}: an exchange failed or an operation could not run, most "
            "likely because another rank stopped, whose own message says why; "
            f"TensorFlow's words: {' '.join(error.message.split())[-300:]}"
        )
        reporter.fail(message)
        raise ValueError(message) from error
    except (ValueError, OSError, KeyboardInterrupt) as error:
        reporter.fail(str(error) or "interrupted")
        raise
    end = time.perf_counter()
    reporter.finish(
        outcome.reason,
        training_seconds=end - start - outcome.evaluation_seconds,
        evaluation_seconds=outcome.evaluation_seconds,
        total_seconds=end - begin,
        steps=outcome.steps,
    )


def join(config: Config) -> Collective:
    """Joins the other ranks and takes this rank's GPU or cores. Comes before any tensor.

    Raises:
        ValueError: the ranks cannot be joined.
    """
    collective = connect()
    devices.claim(collective.local_rank, whole_operations=not config.xla)
    return collective


def open_data(config: Config, collective: Collective) -> Data:
    """Opens training and test data and plans this rank's batches.

    Raises:
        ValueError: files that are missing, malformed or do not fit each other or the settings.
    """
    train: Source
    test: Source
    if config.use_synthetic_dataset:
        train, test = (
            SyntheticSource(SYNTHETIC_VOCAB_SIZES, SYNTHETIC_NUM_DENSE, samples, config.seed + part)
            for part, samples in enumerate((SYNTHETIC_TRAIN_SAMPLES, SYNTHETIC_TEST_SAMPLES))
        )
    else:
        assert config.data_dir is not None
        train, test = (
            open_split(os.path.join(config.data_dir, part), config.use_splited_dataset)
            for part in ("train", "test")
        )
        if test.num_dense != train.num_dense or len(test.vocab_sizes) != len(train.vocab_sizes):
            raise ValueError(
                f"{config.data_dir}/test: expected {train.num_dense} dense and "
                f"{len(train.vocab_sizes)} categorical columns as in train/, found "
                f"{test.num_dense} and {len(test.vocab_sizes)}; split both files with the same "
                "--num_dense and --num_categorical"
            )
    # A test file split on its own may name fewer ids; the tables are those of the larger.
    vocab_sizes = tuple(map(max, zip(train.vocab_sizes, test.vocab_sizes)))

    def batches(source: Source, drop_remainder: bool) -> Batches:
        return Batches(
            source,
            config.global_batch_size,
            collective.rank,
            collective.size,
            drop_remainder=drop_remainder,
        )

    return Data(batches(train, True), batches(test, False), train.num_dense, vocab_sizes)


def build_trainer(config: Config, collective: Collective, data: Data) -> Trainer:
    """Builds tables, model and trainer; tables and weights depend on the settings alone."""
    # XLA makes one program of the dense part, which uses all cores by itself.
    lanes = 1 if config.xla else math.gcd(devices.lanes(), data.train.local_batch)
    tables = embedding.create(
        config.embedding,
        embedding.FusedTable(data.vocab_sizes, config.embedding_dim, config.seed),
        collective,
        compress=config.compress,
        bad_ids=config.bad_ids,
        exchange_dtype=config.compute_dtype,
        groups=lanes,
    )
    policy = f"mixed_{config.amp_dtype}" if config.amp else "float32"
    model = DLRM(config.bottom_mlp, config.top_mlp, seed=config.seed, dtype=policy)
    return Trainer(config, model, tables, collective, num_dense=data.num_dense, lanes=lanes)
