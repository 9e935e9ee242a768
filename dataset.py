"""The data: opens training and test samples, and cuts them into this rank's batches.

    data_dir/train, data_dir/test        or synthetic samples
        |                                a `Source` reads any range of samples
    global batch  [G samples]            G = --global_batch_size, the same samples for any N ranks
        |                                `Batches` takes this rank's share and reads ahead
    `Batch`       [B samples]            B = G / N

A `dlrm.data.Batch` is one rank's share of a global batch:

    dense   float32 [B, D]   D dense features; finite, and already scaled, by a logarithm if any
    ids     int32   [B, T]   one id for each of T tables; the embedding checks their range. Where a
                             table holds bags of ids, a `dlrm.formats.bags.Bags` of all tables
    labels  float32 [B]      0 or 1

To train on other data, write a `dlrm.data.Source` and open it here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dlrm.config import Config
from dlrm.config.data import SYNTHETIC_NUM_DENSE
from dlrm.data import (
    Batches,
    Data,
    Fingerprints,
    Source,
    SyntheticSource,
    open_split,
    write_synthetic,
)
from dlrm.data.verify import check_data
from dlrm.formats.bags import BagLayout

EVALUATED_AT_ONCE = 8192  # samples of a rank


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
    train, test = synthetic_sources(config) if config.data.synthetic else file_sources(config)
    check_num_dense(config, train)
    return Data(
        train=training_batches(config, train, rank, size),
        test=test_batches(config, test, rank, size),
        num_dense=train.num_dense,
        vocab_sizes=table_sizes(config, train, test),
        fingerprints=Fingerprints({"training": train, "test": test}),
        notes=check_files(config, rank, size),
        bag_layout=train.bag_layout,
    )


def synthetic_sources(config: Config) -> tuple[Source, Source]:
    """Makes synthetic training and test samples; `synthetic_disk` writes them to files first.

    Raises:
        ValueError: The folder for the files holds other data.
    """
    options = config.synthetic
    num_dense = config.data.num_numerical_features or SYNTHETIC_NUM_DENSE
    train, test = (
        SyntheticSource(
            options.synthetic_dataset_table_sizes,
            num_dense,
            samples,
            config.run.seed + part,
            options.synthetic_hotness,
        )
        for part, samples in enumerate(options.samples)
    )
    if config.data.dataset_type != "synthetic_disk":
        return train, test
    folders = [Path(options.synthetic_dataset_dir, part) for part in ("train", "test")]
    for folder, source in zip(folders, (train, test)):
        write_synthetic(folder, source)
    return open_split(folders[0], False), open_split(folders[1], False)


def file_sources(config: Config) -> tuple[Source, Source]:
    """Opens the training and test samples in `data_dir`.

    Raises:
        ValueError: Files are missing or malformed, or the parts have different columns.
    """
    assert config.data.data_dir is not None
    parts = [
        open_split(Path(config.data.data_dir, part), config.data.use_splited_dataset)
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
    check_same_bags(config, train.bag_layout, test.bag_layout)
    return train, test


def check_same_bags(config: Config, train: BagLayout | None, test: BagLayout | None) -> None:
    """Checks that both parts pool their tables alike."""
    if train == test or (
        train and test and (train.pooling, train.weights) == (test.pooling, test.weights)
    ):
        return
    raise ValueError(
        f"{config.data.data_dir}/test: expected bags of ids, their pooling and weights as in "
        f"train/, found {test or 'no bags'} and {train or 'no bags'}; write both parts again with "
        "the same columns"
    )


def parts_of(config: Config) -> tuple[str, ...]:
    """Names the folders in `data_dir` that the run reads; only training needs `train`."""
    assert config.data.data_dir is not None
    if config.run.mode != "train" and not Path(config.data.data_dir, "train").exists():
        return ("test",)
    return ("train", "test")


def check_num_dense(config: Config, source: Source) -> None:
    """Checks that the samples have as many dense features as the settings say, if they do."""
    expected = config.data.num_numerical_features
    if expected not in (None, source.num_dense):
        raise ValueError(
            f"{config.data.data_dir}: expected {expected} dense columns "
            f"(--num_numerical_features), found {source.num_dense}; leave the flag out to take "
            "what the files hold"
        )


def table_sizes(config: Config, train: Source, test: Source) -> tuple[int, ...]:
    """Returns the number of rows of each table."""
    # A test file that was split on its own may have fewer ids; the larger count is the table's.
    sizes = tuple(map(max, zip(train.vocab_sizes, test.vocab_sizes)))
    most = config.embedding.max_table_size
    return sizes if most is None else tuple(min(size, most) for size in sizes)


def training_batches(config: Config, source: Source, rank: int, size: int) -> Batches:
    """Cuts the training samples into one rank's batches."""
    return Batches(
        source,
        config.data.global_batch_size,
        rank,
        size,
        # For an evaluation alone, the training data may be smaller than a batch.
        drop_remainder=config.run.mode == "train",
        subset=config.data.dataset_subset,
        order_seed=config.run.seed if config.data.shuffle_batch_order else None,
    )


def test_batches(config: Config, source: Source, rank: int, size: int) -> Batches:
    """Cuts the test samples into one rank's batches."""
    own = config.evaluation.test_batch_size
    return Batches(
        source,
        own or evaluation_batch(config.data.global_batch_size, source.num_samples, size),
        rank,
        size,
        drop_remainder=False,
        size_flag="--test_batch_size" if own else "--global_batch_size",
    )


def evaluation_batch(global_batch: int, num_samples: int, size: int) -> int:
    """Returns how many samples all ranks evaluate at once: whole global batches.

    What a batch costs beside its samples no longer counts with `EVALUATED_AT_ONCE` samples a rank.

    Args:
        global_batch: Number of samples of a training step.
        num_samples: Number of test samples.
        size: Number of ranks.
    """
    batches = math.ceil(min(size * EVALUATED_AT_ONCE, num_samples) / global_batch)
    return max(batches, 1) * global_batch


def check_files(config: Config, rank: int, size: int) -> Sequence[str]:
    """Checks the data files as `verify_data` says; each file is read by one rank.

    Returns:
        Remarks of the check of their content, one line each.

    Raises:
        ValueError: The first fault in this rank's share of the files.
    """
    if config.data.synthetic or config.data.verify_data == "off":
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
