"""The model card of an artifact: what the model is, where it comes from, and what storing it cost.

Written as JSON for programs and as Markdown for people. Neither holds a time or a path, so that
equal exports give equal cards. The figures are measured by others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import Manifest
from dlrm.checkpoint.safetensors_file import FileDigest, digest_file
from dlrm.config import SETTINGS
from dlrm.formats import atomic_files
from dlrm.formats.json_files import json_text
from dlrm.reporting.event_log import jsonable
from serving.artifact import (
    DENSE_FILE,
    MODEL_CARD_JSON,
    MODEL_CARD_MD,
    Artifact,
    map_tensors,
)
from serving.calibration import Calibration
from serving.model_card_text import markdown
from serving.row_encoding import TABLE_TYPES, row_bytes
from serving.table_files import RowErrors

if TYPE_CHECKING:
    from serving.evaluate import Comparison

_FORMAT = 1
_EVENTS = "events.jsonl"
_FIGURES = ("auc", "log_loss", "normalised_entropy", "samples")


class Costs(NamedTuple):
    """What storing the model in fewer bits cost.

    Attributes:
        tables: The errors of each table's values.
        calibration: The calibration of int8 MLPs; None where they are float32.
        quality: The quality of the predictions beside the float32 model's; None if not measured.
    """

    tables: Sequence[RowErrors]
    calibration: Calibration | None
    quality: Comparison | None


def write_model_card(
    artifact: Artifact, manifest: Manifest, weights: Mapping[str, NDArray[Any]], costs: Costs
) -> dict[str, FileDigest]:
    """Writes `model_card.json` and `model_card.md` into the artifact's folder.

    Args:
        artifact: The artifact.
        manifest: The manifest of its checkpoint.
        weights: The float32 weights of the MLPs, by name.
        costs: What storing the model cost.

    Returns:
        The digest of each file by name.
    """
    card = _content(artifact, manifest, weights, costs)
    texts = {MODEL_CARD_JSON: json_text(card, indent=1), MODEL_CARD_MD: markdown(card)}
    for name, text in texts.items():
        atomic_files.write_text(artifact.folder / name, text)
    return {name: digest_file(artifact.folder / name) for name in texts}


def _content(
    artifact: Artifact, manifest: Manifest, weights: Mapping[str, NDArray[Any]], costs: Costs
) -> dict[str, Any]:
    """The content of `model_card.json`."""
    model = artifact.model
    rows, width = artifact.rows, model.embedding_dim
    dense = map_tensors(artifact.folder / DENSE_FILE)
    content = {
        "format": _FORMAT,
        "model": {
            **dataclasses.asdict(model),
            "tables": len(model.vocab_sizes),
            "rows": rows,
            "rows_of_tables": artifact.rows_of_tables,
            "parameters": {"tables": rows * width, **_by_mlp(weights, "size")},
        },
        "stored": {
            "tables": artifact.tables,
            "dense": artifact.dense,
            "row_order": "use" if artifact.row_order else "key",
            "bytes_per_row": row_bytes(artifact.tables, width),
            "bytes": {name: artifact.files[name].size for name in sorted(artifact.files)},
            "mlp_bytes": _by_mlp(dense, "nbytes"),
            "row_bytes_by_type": {name: rows * row_bytes(name, width) for name in TABLE_TYPES},
        },
        "training": {
            **dataclasses.asdict(manifest.position),
            "data": dict(manifest.data),
            "settings": shaping_settings(manifest.settings),
            "evaluation": evaluation_of(manifest),
        },
        "cost": {
            "tables": _table_costs(costs.tables, artifact.rows_of_tables),
            "calibration": _calibration(costs.calibration),
            "quality": None if costs.quality is None else dataclasses.asdict(costs.quality),
        },
        "limits": _limits(artifact),
    }
    return dict(jsonable(content))  # type: ignore[call-overload]


def _by_mlp(tensors: Mapping[str, NDArray[Any]], attribute: str) -> dict[str, int]:
    """The sum of an attribute over the tensors of each MLP, and of any cross layers."""
    sums = {"bottom": 0, "top": 0}
    for name, value in tensors.items():
        part = name.partition("_")[0]
        sums[part] = sums.get(part, 0) + getattr(value, attribute)
    return sums


def shaping_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a run with another value of which it would have trained another model."""
    names = [setting.name for setting in SETTINGS if setting.affects_training]
    return {name: settings[name] for name in names if name in settings}


def evaluation_of(manifest: Manifest) -> dict[str, Any] | None:
    """The last evaluation of the checkpoint's step in its run's events; None if there is none.

    Events of another run, which wrote into the same folder with other settings, do not count.
    """
    folder, found = manifest.settings.get("run_dir"), None
    path = Path(folder or ".") / _EVENTS
    if not folder or not path.is_file():
        return None
    shaping = jsonable(shaping_settings(manifest.settings))
    same_run = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
                if event["event"] == "start":
                    same_run = shaping_settings(event["settings"]) == shaping
                elif event["event"] == "evaluation" and event["step"] == manifest.position.step:
                    found = {name: event[name] for name in _FIGURES} if same_run else found
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a crash cut short
    return found


def _table_costs(errors: Sequence[RowErrors], rows_of_tables: Sequence[int]) -> dict[str, Any]:
    """The errors of all tables together and of each one."""
    rows = np.array(rows_of_tables, np.float64)
    means = np.array([table.mean for table in errors])
    return {
        "largest_error": max(table.largest for table in errors),
        "mean_error": float(means @ rows / rows.sum()),
        "largest_magnitude": max(table.magnitude for table in errors),
        "by_table": [table._asdict() for table in errors],
    }


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    """On what the inputs of int8 layers were seen."""
    if calibration is None:
        return None
    names = ("samples", "method", "data")
    return {name: getattr(calibration, name) for name in names}


def _limits(artifact: Artifact) -> dict[str, Any]:
    """What the model accepts."""
    ids = "0 to the rows of the table less 1"
    if artifact.known_ids is not None:
        shared = artifact.known_ids.seed is None
        ids = (
            "0 to the table's vocab_sizes less 1; those that training did not keep have "
            f"{'the row that its table shares' if shared else 'their initial values'}"
        )
    if artifact.model.pooling:
        ids += f"; up to {', '.join(map(str, artifact.model.max_ids))} of each table, 0: one id"
    return {
        "ids": ids,
        "dense": "finite float32, as training saw them",
        "raw_values": "unsigned 32-bit numbers; unknown ones get id 0"
        if artifact.dictionary
        else None,
        "dictionary": artifact.dictionary,
        "output": "the logit; its sigmoid is the probability of a click",
    }
