"""Models of random weights to serve: a checkpoint of a benchmark's shape, and its artifacts.

Nothing is trained: speed and memory depend on sizes alone. What is made stays in the folder, as the
larger shape takes a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import NUM_DENSE, Shape
from dlrm.checkpoint import directory
from dlrm.checkpoint.manifest import DENSE_FILE, ROWS, Manifest, ModelShape, Position, tables_file
from dlrm.checkpoint.safetensors_file import TensorWriter, write_tensors
from dlrm.data import SyntheticSource
from dlrm.formats import file_names
from dlrm.formats.metadata import Metadata, write_metadata

_PIECE = 1 << 20  # rows made at a time
_CALIBRATION_SAMPLES = 4096


class Variant(NamedTuple):
    """The types of an artifact.

    Attributes:
        tables: How rows are stored.
        dense: How the MLPs are stored.
    """

    tables: str
    dense: str


def artifact(
    folder: Path,
    shape: Shape,
    variant: Variant,
    *,
    row_frequencies: Path | None = None,
    saved_model: bool = False,
) -> Path:
    """Exports an artifact of random weights, unless the folder holds it already.

    Args:
        folder: The folder of everything of this shape; made if missing.
        shape: The model and its tables.
        variant: The types of the artifact.
        row_frequencies: The counts by which rows are sorted; None for the order of keys.
        saved_model: Whether TensorFlow's SavedModel is written too.
    """
    from serving.calibration import calibrate
    from serving.export import ExportOptions, export

    name = "-".join(filter(None, (*variant, "ordered" if row_frequencies else "")))
    out = folder / name
    if out.exists():
        return out
    checkpoint = write_checkpoint(folder / "checkpoints", shape)
    calibration = folder / "calibration.json" if variant.dense == "int8" else None
    if calibration and not calibration.exists():
        samples = source(shape, _CALIBRATION_SAMPLES).read(0, _CALIBRATION_SAMPLES)
        data = write_split(folder / "calibration", shape, *samples)
        calibrate(checkpoint, data, _CALIBRATION_SAMPLES, "minmax").write(calibration)
    options = ExportOptions(
        tables=variant.tables,
        dense=variant.dense,
        calibration=calibration,
        row_frequencies=row_frequencies,
        saved_model=saved_model,
    )
    export(checkpoint, out, options, lambda message: None)
    return out


def write_split(
    folder: Path,
    shape: Shape,
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
    labels: NDArray[np.float32],
) -> Path:
    """Writes samples as a split folder, and returns it.

    Args:
        folder: The folder; made if missing.
        shape: The model and its tables.
        dense: float32 [samples, D], in the model's units.
        ids: int32 [samples, T].
        labels: float32 [samples].
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (
        (file_names.LABEL, labels),
        (file_names.DENSE, dense),
        (file_names.CATEGORY, ids),
    ):
        values.tofile(folder / name)
    types = ("float32", "float32", "int32")
    write_metadata(folder, Metadata(shape.vocab_sizes, *types, False, dense.shape[1]))
    return folder


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Writes a checkpoint with random weights of the size that training starts from.

    Args:
        folder: The folder for checkpoints; an earlier one in it is taken as it is.
        shape: The model and its tables.

    Returns:
        The folder of the checkpoint.
    """
    if present := directory.finished(folder):
        return present[-1]
    folder.mkdir(parents=True, exist_ok=True)
    config = shape.config(1)
    model = ModelShape(
        NUM_DENSE,
        shape.vocab_sizes,
        config.model.embedding_dim,
        config.model.bottom_mlp,
        config.model.top_mlp,
    )
    directory.clean(folder)
    unfinished = directory.unfinished_path(folder, 0)
    unfinished.mkdir()
    random = np.random.default_rng(0)
    keys, width = sum(model.vocab_sizes), model.embedding_dim
    tables = tables_file(0, 1)
    with TensorWriter(unfinished / tables, {ROWS: (np.dtype("<f4"), (keys, width))}) as writer:
        for first in range(0, keys, _PIECE):
            rows = random.random((min(_PIECE, keys - first), width), np.float32)
            writer.write((rows - np.float32(0.5)) * np.float32(0.2))
        digests = {tables: writer.finish()}
    digests[DENSE_FILE] = write_tensors(unfinished / DENSE_FILE, dict(_dense(model, random)))
    settings = {
        "embedding_dim": width,
        "bottom_mlp": list(config.model.bottom_mlp),
        "top_mlp": list(config.model.top_mlp),
    }
    Manifest(Position(0, 0, 0), model, settings, {}, 1, digests).write(unfinished)
    return directory.commit(unfinished)


def _dense(
    model: ModelShape, random: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields name and values of each dense weight, in the order of a checkpoint."""
    from dlrm.layers.interaction_width import interaction_width

    assert model.num_dense
    assert model.bottom_mlp
    assert model.top_mlp
    width = interaction_width(model.embedding_dim, len(model.vocab_sizes))
    for mlp, sizes in (
        ("bottom", (model.num_dense, *model.bottom_mlp)),
        ("top", (width, *model.top_mlp)),
    ):
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            kernel = random.standard_normal((inputs, outputs), np.float32)
            yield f"{mlp}_kernel_{index}", kernel * np.float32((2 / (inputs + outputs)) ** 0.5)
            bias = random.standard_normal(outputs, np.float32)
            yield f"{mlp}_bias_{index}", bias * np.float32(outputs**-0.5)


def source(shape: Shape, samples: int) -> SyntheticSource:
    """The samples that are scored, with ids that are uniform over each table."""
    return SyntheticSource(shape.vocab_sizes, NUM_DENSE, samples, seed=0)
