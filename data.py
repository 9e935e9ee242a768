"""The data of a run: opens both parts, checks that they fit, plans this rank's batches.

Knows the settings and the ranks; how samples are stored is the business of `dataset`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from collective import Collective
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
from verification import verify


class Data(NamedTuple):
    """This rank's batches, and what the model must know of them.

    Attributes:
        train: of one epoch.
        test: of one evaluation.
        num_dense: dense features of a sample.
        vocab_sizes: rows of each table.
        fingerprints: of each part of the data, by its name.
    """

    train: Batches
    test: Batches
    num_dense: int
    vocab_sizes: tuple[int, ...]
    fingerprints: Mapping[str, str]


def parts_of(config: Config) -> tuple[str, ...]:
    """The folders below `data_dir` that the run reads; to evaluate, `test` is enough."""
    assert config.data_dir is not None
    train = os.path.join(config.data_dir, "train")
    if config.mode == "test" and not os.path.exists(train):
        return ("test",)
    return ("train", "test")


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
        parts = [
            open_split(os.path.join(config.data_dir, part), config.use_splited_dataset)
            for part in parts_of(config)
        ]
        train, test = parts[0], parts[-1]
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

    return Data(
        # Where one only evaluates, the training data may be smaller than a batch.
        batches(train, config.mode == "train"),
        batches(test, False),
        train.num_dense,
        vocab_sizes,
        {"training": train.fingerprint, "test": test.fingerprint},
    )


def verify_data(config: Config, collective: Collective) -> None:
    """Checks the data as --verify_data says; each file is read by one rank.

    Raises:
        ValueError: the first thing that is wrong with this rank's share of the files.
    """
    if config.use_synthetic_dataset or config.verify_data == "off":
        return
    assert config.data_dir is not None
    report = verify(
        config.data_dir,
        config.verify_data,
        per_category=config.use_splited_dataset,
        parts=parts_of(config),
        rank=collective.rank,
        size=collective.size,
    )
    report.raise_fault()
    if collective.rank == 0 and config.verify_data == "full":
        for note in report.notes:
            print(note, flush=True)
