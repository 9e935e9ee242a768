"""The data: opens training and test samples, and cuts them into this rank's batches.

    data_dir/train, data_dir/test        or synthetic samples
        |                                a `Source` reads any range of samples
    global batch  [G samples]            G = --global_batch_size, the same samples for any N ranks
        |                                `Batches` takes this rank's share and reads ahead
    `Batch`       [B samples]            B = G / N

A `dlrm.data.Batch` is one rank's share of a global batch:

    dense   float32 [B, D]   D dense features; finite, and already scaled, by a logarithm if any
    ids     int32   [B, T]   one id for each of T tables; the embedding checks their range
    labels  float32 [B]      0 or 1

To train on other data, write a `dlrm.data.Source` and open it here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dlrm.config import Config
from dlrm.data import (
    SYNTHETIC_NUM_DENSE,
    SYNTHETIC_TEST_SAMPLES,
    SYNTHETIC_TRAIN_SAMPLES,
    SYNTHETIC_VOCAB_SIZES,
    Batches,
    Data,
    Fingerprints,
    Source,
    SyntheticSource,
    open_split,
)
from dlrm.data.verify import check_data


def open_data(config: Config, rank: int, size: int) -> Data:
    """Opens training and test data, and plans this rank's batches.

    Args:
        config: The settings of the run.
        rank: Rank of this process, from 0.
        size: Number of ranks.

    Raises:
        ValueError: Files are missing, malformed or damaged (as far as `verify_data` looks), or do
            not fit each other or the settings.
    """
    train, test = (
        synthetic_sources(config) if config.data.use_synthetic_dataset else file_sources(config)
    )
    return Data(
        # For an evaluation alone, the training data may be smaller than a batch.
        train=batches(config, train, rank, size, drop_remainder=config.run.mode == "train"),
        test=batches(config, test, rank, size, drop_remainder=False),
        num_dense=train.num_dense,
        # A test file that was split on its own may have fewer ids; the larger count is the table's.
        vocab_sizes=tuple(map(max, zip(train.vocab_sizes, test.vocab_sizes))),
        fingerprints=Fingerprints({"training": train, "test": test}),
        notes=check_files(config, rank, size),
    )


def synthetic_sources(config: Config) -> tuple[Source, Source]:
    """Makes the training and test samples of the synthetic benchmark."""
    train, test = (
        SyntheticSource(SYNTHETIC_VOCAB_SIZES, SYNTHETIC_NUM_DENSE, samples, config.run.seed + part)
        for part, samples in enumerate((SYNTHETIC_TRAIN_SAMPLES, SYNTHETIC_TEST_SAMPLES))
    )
    return train, test


def file_sources(config: Config) -> tuple[Source, Source]:
    """Opens the training and test samples in `data_dir`.

    Raises:
        ValueError: Files are missing or malformed, or the parts have different columns.
    """
    assert config.data.data_dir is not None
    parts = [
        open_split(os.path.join(config.data.data_dir, part), config.data.use_splited_dataset)
        for part in parts_of(config)
    ]
    train, test = parts[0], parts[-1]
    if test.num_dense != train.num_dense or len(test.vocab_sizes) != len(train.vocab_sizes):
        raise ValueError(
            f"{config.data.data_dir}/test: expected {train.num_dense} dense and "
            f"{len(train.vocab_sizes)} categorical columns as in train/, found "
            f"{test.num_dense} and {len(test.vocab_sizes)}; split both files with the same "
            "--num_dense and --num_categorical"
        )
    return train, test


def parts_of(config: Config) -> tuple[str, ...]:
    """Names the folders in `data_dir` that the run reads; only training needs `train`."""
    assert config.data.data_dir is not None
    train = os.path.join(config.data.data_dir, "train")
    if config.run.mode != "train" and not os.path.exists(train):
        return ("test",)
    return ("train", "test")


def batches(
    config: Config, source: Source, rank: int, size: int, *, drop_remainder: bool
) -> Batches:
    """Cuts a source into one rank's batches."""
    return Batches(source, config.data.global_batch_size, rank, size, drop_remainder=drop_remainder)


def check_files(config: Config, rank: int, size: int) -> Sequence[str]:
    """Checks the data files as `verify_data` says; each file is read by one rank.

    Returns:
        Remarks of the check of their content, one line each.

    Raises:
        ValueError: The first fault in this rank's share of the files.
    """
    if config.data.use_synthetic_dataset or config.data.verify_data == "off":
        return ()
    assert config.data.data_dir is not None
    report = check_data(
        config.data.data_dir,
        config.data.verify_data,
        per_category=config.data.use_splited_dataset,
        parts=parts_of(config),
        rank=rank,
        size=size,
    )
    report.raise_fault()
    return report.notes if config.data.verify_data == "full" else ()
