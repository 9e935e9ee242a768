"""Samples for training and evaluation: column files or synthetic data -> this rank's batches.

NumPy only: nothing here depends on TensorFlow, Horovod or flags. A source returns any range of
samples; `Batches` cuts it into the batches of one rank and reads ahead. Dense values and labels are
checked here, ids are not: which ids a table accepts is the embedding's policy.
"""

from __future__ import annotations

from dlrm.data.batch import Batch, Fingerprints, Source
from dlrm.data.batches import Batches, Data
from dlrm.data.per_category import PerCategorySource
from dlrm.data.split_files import SplitSource
from dlrm.data.synthetic import SyntheticSource
from dlrm.data.synthetic_files import write_synthetic
from dlrm.formats.file_names import StrPath

__all__ = [
    "Batch",
    "Batches",
    "Data",
    "Fingerprints",
    "PerCategorySource",
    "Source",
    "SplitSource",
    "SyntheticSource",
    "open_split",
    "write_synthetic",
]


def open_split(folder: StrPath, per_category: bool) -> SplitSource | PerCategorySource:
    """Opens a folder such as `data/train`, and checks that its files fit each other.

    Args:
        folder: The folder with `metadata.json` and the column files.
        per_category: Whether each categorical column has a separate file.

    Raises:
        FileNotFoundError: The folder or a file in it is missing.
        ValueError: A file is malformed, truncated or does not fit the others.
    """
    return PerCategorySource(folder) if per_category else SplitSource(folder)
