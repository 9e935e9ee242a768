"""The sections that say what is trained on: files or synthetic samples, and in which batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from dlrm.config.setting import flag, require_positive

# The synthetic set of the SOK benchmark.
SYNTHETIC_VOCAB_SIZES = (
    *(203931, 18598, 14092, 7012, 18977, 4, 6385, 1245, 49, 186213, 71328, 67288, 11),
    *(2168, 7338, 61, 4, 932, 15, 204515, 141526, 199433, 60919, 9137, 71, 34),
)
SYNTHETIC_NUM_DENSE = 13
SYNTHETIC_TRAIN_SAMPLES = 5_242_880
TRAIN_PER_TEST_SAMPLE = 4

RECORD_TYPES = ("binary", "memmap")  # the PyTorch DLRM's names for record files that are not split


@dataclass(frozen=True)
class DataConfig:
    """Where the samples come from, and how many make a step."""

    data_dir: Optional[str] = flag(
        None,
        "folder with train/ and test/ as split_bin.py writes them",
        affects_training=False,  # the fingerprints of the data are compared instead
        aliases=("dataset",),
    )
    dataset_type: str = flag(
        "split",
        "split files in --data_dir; or synthetic samples, computed when they are needed "
        "(synthetic_gpu) or written to --synthetic_dataset_dir once and read from there "
        "(synthetic_disk); binary and memmap files must be split first",
        ("split", *RECORD_TYPES, "synthetic_gpu", "synthetic_disk"),
        affects_training=False,  # again, the fingerprints
    )
    use_synthetic_dataset: bool = flag(
        False, "train on generated samples with random labels; no --data_dir is needed"
    )
    use_splited_dataset: bool = flag(
        False, "read one file for each categorical feature instead of category.bin"
    )
    num_numerical_features: Optional[int] = flag(
        None,
        "dense features of a sample; default: what the files hold, and 13 for synthetic samples",
        affects_training=False,  # a model of another number is another one
    )
    global_batch_size: int = flag(
        65536, "samples in a step, over all ranks", aliases=("batch_size",)
    )
    dataset_subset: float = flag(
        1.0, "fraction of the training data that an epoch takes, from its beginning"
    )
    shuffle_batch_order: bool = flag(
        False,
        "take the training batches in a random order, in each epoch another one",
        aliases=("shuffle",),
    )
    verify_data: str = flag(
        "size",
        "what to check before training: nothing, the sizes of the data files, or their content",
        ("off", "size", "full"),
        affects_training=False,
    )

    def __post_init__(self) -> None:
        if self.dataset_type in RECORD_TYPES:
            raise ValueError(
                f"--dataset_type={self.dataset_type}: expected split files, which take one pass to "
                "write: python3 split_bin.py train_data.bin DATA/train, the same for test, then "
                "--data_dir=DATA"
            )
        if not self.data_dir and not self.synthetic:
            raise ValueError("no data: set --data_dir=FOLDER or --use_synthetic_dataset")
        require_positive(self, "global_batch_size")
        if self.num_numerical_features is not None:
            require_positive(self, "num_numerical_features")
        if not 0 < self.dataset_subset <= 1:
            raise ValueError(
                f"expected --dataset_subset above 0, at most 1, found {self.dataset_subset}"
            )

    @property
    def pinned(self) -> tuple[str, ...]:
        """The settings that a resumed run must keep.

        Schedule and position count in steps, and a position says which batches are done.
        """
        flags = ("global_batch_size", "dataset_subset", "shuffle_batch_order")
        return (*flags, "seed") if self.shuffle_batch_order else flags

    @property
    def synthetic(self) -> bool:
        """Whether the samples are generated, be it when they are needed or to files."""
        return self.use_synthetic_dataset or self.dataset_type.startswith("synthetic")


@dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic samples, where --use_synthetic_dataset or --dataset_type asks for them."""

    synthetic_dataset_num_entries: int = flag(
        SYNTHETIC_TRAIN_SAMPLES,
        "training samples of an epoch; the test samples are a quarter as many",
        affects_training=False,  # again, the fingerprints
    )
    synthetic_dataset_table_sizes: tuple[int, ...] = flag(
        SYNTHETIC_VOCAB_SIZES,
        "rows of each table",
        affects_training=False,  # a model of other tables is another one
    )
    synthetic_hotness: tuple[int, ...] = flag(
        (),
        "ids of a sample in each table, pooled by their sum; default: one, and no bags",
        affects_training=False,  # again, the fingerprints
    )
    synthetic_dataset_dir: str = flag(
        "synthetic_dataset",
        "folder for the files of --dataset_type=synthetic_disk",
        affects_training=False,
    )

    def __post_init__(self) -> None:
        require_positive(self, "synthetic_dataset_num_entries")
        sizes = self.synthetic_dataset_table_sizes
        if not sizes or min(sizes) < 1:
            raise ValueError(
                "expected --synthetic_dataset_table_sizes of integers from 1, found "
                f"{','.join(map(str, sizes)) or 'none'}"
            )
        hotness = self.synthetic_hotness
        if hotness and (len(hotness) != len(sizes) or min(hotness) < 1):
            raise ValueError(
                f"expected --synthetic_hotness of an integer from 1 for each of the {len(sizes)} "
                f"tables, found {','.join(map(str, hotness))}"
            )

    @property
    def samples(self) -> tuple[int, int]:
        """Numbers of training and of test samples."""
        train = self.synthetic_dataset_num_entries
        return train, max(1, train // TRAIN_PER_TEST_SAMPLE)
