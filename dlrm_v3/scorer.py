"""Scores requests with a trained model: a checkpoint in, probabilities of candidates out.

The history of a request is encoded once, and its candidates are scored against the keys and values
that are kept of it. This module must not know where requests come from.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import DENSE_FILE, Manifest, read_manifest
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.metrics import probabilities
from dlrm.train.dense_part import plain_name
from dlrm_v3 import hstu_op
from dlrm_v3.config import HstuConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream
from dlrm_v3.encoded_tables import EncodedTable, read_tables
from dlrm_v3.model.hstu import HistoryState, Hstu, build_model
from dlrm_v3.model.inputs import ModelInputs, TargetInputs, Vectors, cut_targets, split_inputs
from serving.loadgen.timeline import Timeline

TASK = "rating"

_TABLES = ("items", "categories", "users")
_TARGETS_AT_ONCE = 1 << 13  # bounds the memory of many candidates
_REMEDY = "name a checkpoint that python3 -m dlrm_v3.train wrote"
_SILENT = Timeline(recording=False)


class HstuScorer:
    """A model with its tables; several threads may score at a time.

    Args:
        model: The model.
        tables: Rows of the items, the categories and the users.
        items_per_category: Number of items in a row that have the same category.
        categories: Number of categories.
        targets_at_once: Most candidates that are scored together; histories are encoded once
            however many there are.

    Attributes:
        max_history: Most events of a history.
    """

    def __init__(
        self,
        model: Hstu,
        tables: list[EncodedTable],
        items_per_category: int,
        categories: int,
        targets_at_once: int = _TARGETS_AT_ONCE,
    ) -> None:
        self.max_history = model.config.max_history
        self._items, category_table, self._users = tables
        self._categories = tf.constant(category_table.lookup(np.arange(categories)))
        self._items_per_category = items_per_category
        self._targets_at_once = targets_at_once
        self._task = model.config.tasks.index(TASK)
        self._encode, self._score = _functions(model)

    @classmethod
    def open(cls, checkpoint: Path, stream: RequestStream, encoding: str) -> HstuScorer:
        """Reads a checkpoint.

        Args:
            checkpoint: The checkpoint.
            stream: The data that is to be scored; the model must have been trained on it.
            encoding: How the tables are kept; one of `encoded_tables.ENCODINGS`.

        Raises:
            ValueError: The checkpoint is damaged, of another model or of other data, or the memory
                does not suffice.
            OSError: A file cannot be read.
        """
        manifest = read_manifest(checkpoint)
        config, max_length = _model_settings(checkpoint, manifest)
        _check_data(checkpoint, manifest, stream)
        tables = read_tables(checkpoint, manifest, _TABLES, encoding)
        fused = hstu_op.is_built()
        model = build_model(
            config, max_length=max_length, seed=0, dtype="float32", fused=fused, xla=False
        )
        _load_weights(checkpoint, manifest, model)
        return cls(model, tables, stream.config.items_per_category, stream.config.categories)

    def score(self, batch: RequestBatch, timeline: Timeline = _SILENT) -> NDArray[np.float32]:
        """Scores the candidates of requests.

        Args:
            batch: The requests.
            timeline: Records the spans `sparse`, the lookup of vectors, and `dense`, the model.

        Returns:
            The probability of label 1, float32 [C].

        Raises:
            ValueError: A request has no candidates, or an id is outside its table.
        """
        if not len(batch.targets) or batch.targets.min() < 1:
            user = batch.users[batch.targets.argmin()] if len(batch.users) else "none"
            raise ValueError(f"user {user}: expected a request with candidates, found none")
        with timeline.span("sparse"):
            histories, targets = split_inputs(batch, self._items_per_category)
            history_vectors = self._items.lookup(histories.items)
            users = self._users.lookup(histories.users)
        with timeline.span("dense"):
            vectors = Vectors(history_vectors, self._categories, users)
            state = self._encode(_tensors(histories), _tensors(vectors))
        logits = []
        for begin in range(0, len(targets.items), self._targets_at_once):
            part = cut_targets(targets, begin, begin + self._targets_at_once)
            with timeline.span("sparse"):
                items = self._items.lookup(part.items)
            with timeline.span("dense"):
                logits.append(self._score(state, _tensors(part), items, self._categories).numpy())
        return probabilities(np.concatenate(logits)[:, self._task])


def _tensors(arrays: Any) -> Any:
    """The same tuple with tensors in place of arrays."""
    return type(arrays)(*(tf.convert_to_tensor(array) for array in arrays))


def _functions(model: Hstu) -> tuple[Any, Any]:
    """The two parts of the model as graphs for any number of requests, tokens and candidates."""
    config = model.config
    row = tf.TensorSpec([None, config.width], tf.float32)
    int32, int64 = (tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.int64))
    inputs = ModelInputs(*(int32 for _ in ModelInputs._fields))._replace(
        times=int64, request_times=int64
    )
    width = config.heads * (config.attention_dim + config.value_dim)
    kept = tf.TensorSpec([None, width], tf.float32)
    state = HistoryState((kept,) * config.layers, int32, int64)
    targets = TargetInputs(*(int32 for _ in TargetInputs._fields))

    def score(state: HistoryState, targets: TargetInputs, items: Any, categories: Any) -> Any:
        return model.score_targets(state, targets, Vectors(items, categories, None))

    return (
        tf.function(
            model.encode_history,
            input_signature=[inputs, Vectors(row, row, row)],
            autograph=False,
        ),
        tf.function(score, input_signature=[state, targets, row, row], autograph=False),
    )


def _model_settings(checkpoint: Path, manifest: Manifest) -> tuple[HstuConfig, int]:
    """The shape of a checkpoint's model, and the length that its attention is divided by."""
    names = [field.name for field in fields(HstuConfig)]
    missing = [name for name in (*names, "max_length") if name not in manifest.settings]
    if missing or DENSE_FILE not in manifest.files:
        raise ValueError(
            f"{checkpoint}: expected a model of DLRMv3, found none: "
            f"{', '.join(missing[:3]) or DENSE_FILE} missing; {_REMEDY}"
        )
    settings = {name: manifest.settings[name] for name in names}
    config = HstuConfig(**{**settings, "tasks": tuple(settings["tasks"])})
    if TASK not in config.tasks:
        raise ValueError(
            f"{checkpoint}: expected a model with the task {TASK}, found {', '.join(config.tasks)}"
        )
    return config, int(manifest.settings["max_length"])


def _check_data(checkpoint: Path, manifest: Manifest, stream: RequestStream) -> None:
    """Checks that a checkpoint was trained on the data.

    Raises:
        ValueError: It was not.
    """
    expected, found = stream.fingerprint, manifest.data.get("stream")
    if expected != found:
        raise ValueError(
            f"{checkpoint}: expected a model of this data ({expected}), found one of other data "
            f"({found}); name the --dataset that it was trained on"
        )


def _load_weights(checkpoint: Path, manifest: Manifest, model: Hstu) -> None:
    """Gives the model the weights of a checkpoint; what an optimizer keeps there is left out.

    Raises:
        ValueError: A weight is missing or has another shape, or the file is damaged.
        OSError: The file cannot be read.
    """
    path = checkpoint / DENSE_FILE
    with TensorReader(path, manifest.files[DENSE_FILE]) as reader:
        for variable in model.variables:
            name, shape = plain_name(variable), tuple(variable.shape)
            found = reader.tensors[name][1] if name in reader.tensors else None
            if found is None or tuple(found) != shape:
                raise ValueError(
                    f"{path}: expected {name} of shape {list(shape)}, found {found}; {_REMEDY}"
                )
            variable.assign(reader.read(name))
