"""Writes a SavedModel of an artifact, which `tf.saved_model.load` and TensorFlow Serving take.

Two steps: `signatures` makes the graph, whose tables are still empty, and saves it; `variables`
then puts the tables' values into the files of its variables piece by piece, so that tables larger
than memory are written. The server, the scorer and the artifact's own files are no concern of this
package.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import DENSE_FILE, Manifest, read_manifest
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.config import SETTINGS, Config
from dlrm.distributed.sharding import key_offsets
from dlrm.train.dense_part import plain_name
from model import DLRM, build_model
from serving.artifact import (
    DICTIONARY_FILE,
    IDS,
    KNOWN_IDS_FILE,
    POSITIONS,
    ROW_ORDER_FILE,
    ROWS,
    TABLE_SCALES,
    TABLES_FILE,
    VALUES,
    Artifact,
)
from serving.saved_model.signatures import DictionaryRules, SavedScorer
from serving.saved_model.variables import PiecewiseVariable, fill_variables

# The file and the tensor behind each variable that is written in pieces.
_SOURCES = {
    "rows": (TABLES_FILE, ROWS),
    "table_scales": (TABLES_FILE, TABLE_SCALES),
    "known_keys": (KNOWN_IDS_FILE, IDS),
    "positions": (ROW_ORDER_FILE, POSITIONS),
    "dictionary_values": (DICTIONARY_FILE, VALUES),
    "dictionary_ids": (DICTIONARY_FILE, IDS),
}
# A graph that any TensorFlow can run: no operation of ours, and weights in 32 bits.
_BEYOND = 2**63 - 1  # a key that no id has
_PLAIN = {"amp": False, "xla": False, "custom_interact": False, "custom_mlp": False}


def write_saved_model(checkpoint: Path, artifact: Artifact, out: Path) -> None:
    """Writes the SavedModel of a checkpoint with the tables of an artifact.

    The dense layers are those that `model.build_model` builds, with the checkpoint's weights in
    float32, whatever type the artifact's own dense layers have. Every block of the artifact's files
    is checked while it is read.

    Args:
        checkpoint: The checkpoint that the artifact was exported from.
        artifact: The artifact, whose tables, order of rows and dictionary are complete.
        out: The folder to write, which must not exist.

    Raises:
        ValueError: A file is damaged, or `model.build_model` builds other weights than the
            checkpoint holds; the message names them.
        OSError: A file cannot be read or written.
    """
    manifest = read_manifest(checkpoint)
    model = _dense_model(checkpoint, manifest)
    rules = DictionaryRules.of(artifact.dictionary) if artifact.dictionary is not None else None
    scorer = SavedScorer(
        model,
        artifact.model,
        artifact.tables,
        artifact.packing,
        rules,
        artifact.known_ids,
        ordered=artifact.row_order,
    )
    with quiet():
        tf.saved_model.save(scorer, str(out), signatures=scorer.signatures())
    # The sum in it is of the empty variables, so all models of a shape would look the same.
    (out / "fingerprint.pb").unlink(missing_ok=True)
    with _opened(artifact, scorer.pending()) as pending:
        fill_variables(out / "variables" / "variables", pending)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TensorFlow from logging each part of a SavedModel that it writes or reads."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _dense_model(checkpoint: Path, manifest: Manifest) -> DLRM:
    """The model that the project's `model.py` builds, with the checkpoint's weights."""
    shape = manifest.model
    if DENSE_FILE not in manifest.files or shape.num_dense is None:
        raise ValueError(
            f"{checkpoint}: expected a checkpoint with dense weights, found tables alone; export "
            "one that a training wrote"
        )
    model = build_model(_config_of(manifest))
    model(
        tf.zeros([1, shape.num_dense]),
        tf.zeros([1, len(shape.vocab_sizes), shape.embedding_dim]),
    )
    with TensorReader(checkpoint / DENSE_FILE, manifest.files[DENSE_FILE]) as reader:
        for weight in model.trainable_variables:
            name, expected = plain_name(weight), tuple(weight.shape)
            found = reader.tensors[name][1] if name in reader.tensors else None
            if found != expected:
                raise ValueError(
                    f"{checkpoint}: model.py builds the weight {name} of shape {list(expected)}, "
                    f"the checkpoint holds {list(found) if found is not None else 'none'}; export "
                    "with the model.py that trained it"
                )
            weight.assign(reader.read(name))
    return model


def _config_of(manifest: Manifest) -> Config:
    """The settings of the run that wrote a checkpoint, for a graph of plain operations."""
    known = {setting.name for setting in SETTINGS}
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.settings.items()
        if name in known
    }
    shape = manifest.model
    fixed = {"embedding_dim": shape.embedding_dim, "mode": "train", "use_synthetic_dataset": True}
    if shape.cross_layers:
        fixed.update(cross_layers=shape.cross_layers, cross_rank=shape.cross_rank)
    units = {
        "bottom_mlp": shape.bottom_mlp,
        "top_mlp": shape.top_mlp,
        "interaction": shape.interaction,
    }
    return Config.of(**{**settings, **fixed, **units, **_PLAIN})


@contextlib.contextmanager
def _opened(
    artifact: Artifact, pending: Mapping[str, tf.DType]
) -> Iterator[dict[str, PiecewiseVariable]]:
    """Opens the artifact's tensors behind the variables that are still empty."""
    with contextlib.ExitStack() as stack:
        readers: dict[str, TensorReader] = {}
        found = {}
        for variable, dtype in pending.items():
            file, tensor = _SOURCES[variable]
            if file not in readers:
                reader = TensorReader(artifact.folder / file, artifact.files[file])
                readers[file] = stack.enter_context(reader)
            shape = readers[file].tensors[tensor][1]
            read = partial(readers[file].read, tensor)
            if variable == "known_keys":
                shape, read = (shape[0] + 1,), partial(_known_keys, artifact, read)
            found[variable] = PiecewiseVariable(dtype, shape, read)
        yield found


def _known_keys(
    artifact: Artifact, read: Callable[[int, int], NDArray[Any]], first: int, last: int
) -> NDArray[np.int64]:
    """The keys [first, last) of known ids in training; behind them follows one beyond all."""
    assert artifact.known_ids is not None
    ends = np.cumsum(artifact.known_ids.counts, dtype=np.int64)
    total = int(ends[-1])
    ids = read(first, min(last, total)).astype(np.int64)
    tables = np.searchsorted(ends, np.arange(first, first + len(ids)), side="right")
    keys = ids + key_offsets(artifact.model.vocab_sizes)[tables]
    return np.append(keys, _BEYOND) if last > total else keys
