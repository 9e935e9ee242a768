"""Split folders of a few samples, as files: the only writer of data for tests.

Follows the formats, independent of the code that reads them. Random data is the same on every run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrm.formats import file_names

NUM_DENSE, VOCAB_SIZES = 2, (5, 3)
GLOBAL_BATCH = 8
# Settings of `Config.of` under which these samples are trained within a second.
SETTINGS: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH,
    "embedding_dim": 4,
    "bottom_mlp": (4,),
    "top_mlp": (1,),
    "lr": 0.1,
    "warmup_steps": 0,
    "eval_in_last": True,
}


def write_split(
    folder: Path,
    labels: NDArray[Any],
    dense: NDArray[Any],
    ids: NDArray[Any],
    vocab_sizes: ArrayLike,
    **metadata: Any,
) -> Path:
    """Writes a split folder; the types of the arrays are the types in the files.

    Args:
        folder: The folder to write; created if missing.
        labels: The labels, int32 or float32 [samples].
        dense: The dense values, int32 or float32 [samples, columns].
        ids: The ids, int32 or float32 [samples, tables].
        vocab_sizes: Number of rows of each table.
        metadata: Other values for keys of metadata.json, or more keys.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (
        (file_names.LABEL, labels),
        (file_names.DENSE, dense),
        (file_names.CATEGORY, ids),
    ):
        values.tofile(folder / name)
    content = {
        "vocab_sizes": np.asarray(vocab_sizes).tolist(),
        "label_raw_type": str(labels.dtype),
        "dense_raw_type": str(dense.dtype),
        "category_raw_type": str(ids.dtype),
        "dense_log": True,
    }
    (folder / file_names.METADATA).write_text(json.dumps({**content, **metadata}))
    return folder


def write_per_category(
    folder: Path,
    labels: NDArray[Any],
    dense: NDArray[Any],
    ids: NDArray[Any],
    vocab_sizes: ArrayLike,
) -> Path:
    """Writes a folder with a file for each table, in the narrowest integers that hold its ids."""
    folder.mkdir(parents=True, exist_ok=True)
    labels.astype(bool).tofile(folder / file_names.LABEL)
    dense.astype("<f2").tofile(folder / file_names.DENSE)
    sizes = np.asarray(vocab_sizes).tolist()
    for table, size in enumerate(sizes):
        kind = next(kind for kind in ("<i1", "<i2", "<i4") if size < np.iinfo(kind).max)
        ids[:, table].astype(kind).tofile(folder / file_names.category_file(table))
    (folder / file_names.METADATA).write_text(json.dumps({"vocab_sizes": sizes}))
    return folder


def write_random_split(folder: Path, samples: int) -> Path:
    """Writes good random samples, among them both labels, of `NUM_DENSE` and `VOCAB_SIZES`."""
    generator = np.random.default_rng(samples)
    labels = generator.integers(0, 2, samples)
    labels[:2] = 0, 1
    dense = generator.integers(0, 9, [samples, NUM_DENSE]).astype("<i4")
    ids = generator.integers(0, VOCAB_SIZES, [samples, len(VOCAB_SIZES)]).astype("<i4")
    return write_split(folder, labels.astype("<i4"), dense, ids, VOCAB_SIZES, num_dense=NUM_DENSE)
