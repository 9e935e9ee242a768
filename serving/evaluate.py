"""The quality of an artifact's predictions, beside that of the float32 model it was made from.

The float32 model's figures come from an artifact of it, from its checkpoint, or from what the
export and the training run kept. Arithmetic is in `dlrm.metrics`, scores are the scorer's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import read_manifest
from dlrm.metrics import MLPERF_SHARES, Quality, quality_of
from serving.artifact import MODEL_CARD_JSON, Artifact, read_artifact, verify_artifact
from serving.checkpoint_samples import CheckpointSamples, ModelSamples
from serving.dense_model import DenseModel
from serving.dense_weights import read_dense
from serving.row_encoding import FLOAT32
from serving.scorer import Scorer

_BATCH = 1 << 15
_WINDOW = 1 << 19  # samples whose rows are read from a checkpoint at a time

_ITSELF = "this artifact is float32"
_FROM_TRAINING = "as the training run evaluated it"
_FROM_EXPORT = "as the export measured it"


@dataclass(frozen=True)
class Comparison:
    """The figures of an artifact and of the float32 model on the same samples.

    Attributes:
        artifact: Those of the artifact.
        reference: Those of the float32 model; None if they are not known.
        origin: Where those of the float32 model come from.
        data: The fingerprint of the samples.
    """

    artifact: Quality
    reference: Quality | None
    origin: str
    data: str

    def held(self, share: float) -> bool:
        """Says whether the artifact has a share of the AUC of the float32 model, if that is known.

        Args:
            share: The share, such as 0.99.
        """
        return self.reference is None or self.artifact.auc >= share * self.reference.auc


def evaluate(
    folder: Path, data: Path, *, reference: Path | None = None, checkpoint: Path | None = None
) -> Comparison:
    """Scores all samples of a split folder with an artifact, and with the float32 model if need be.

    Args:
        folder: The artifact.
        data: The split folder.
        reference: An artifact of the float32 model, or None.
        checkpoint: The checkpoint of the float32 model, or None. NumPy computes with it, in
            windows of samples whose rows it reads.

    Raises:
        ValueError: Something is damaged, or does not fit the others.
        OSError: A file cannot be read, or the scorer's library is not built.
    """
    artifact = read_artifact(folder)
    samples = ModelSamples(data, artifact.model)
    own = quality_of(*_scores(folder, samples))
    if reference is not None:
        _check_reference(artifact, read_artifact(reference))
        other, origin = quality_of(*_scores(reference, samples)), str(reference)
    elif (artifact.tables, artifact.dense) == (FLOAT32, FLOAT32):
        other, origin = own, _ITSELF
    elif checkpoint is not None:
        other, origin = _quality_of_checkpoint(checkpoint, samples), _FROM_EXPORT
    else:
        return Comparison(own, *_kept(artifact, samples.fingerprint), samples.fingerprint)
    return Comparison(own, other, origin, samples.fingerprint)


def report(comparison: Comparison) -> Iterator[str]:
    """Yields lines about a comparison, for people.

    Args:
        comparison: What `evaluate` returned.
    """
    own, reference = comparison.artifact, comparison.reference
    yield f"{own.samples:,} samples {'AUC':>14} {'log loss':>11} {'NE':>11}"
    if reference is None:
        yield _line("this artifact", own)
        yield (
            "float32 model: not known for this data; export it with --tables=float32 "
            "--dense=float32 and give --reference=ARTIFACT, or export with --data=DATA"
        )
        return
    yield _line("float32 model", reference)
    yield _line("this artifact", own)
    yield (
        f"{'change':<16} {own.auc / reference.auc - 1:>+12.4%} "
        f"{own.log_loss / reference.log_loss - 1:>+11.4%} "
        f"{own.normalised_entropy / reference.normalised_entropy - 1:>+11.4%}"
    )
    yield f"the float32 model's figures: {comparison.origin}"
    for share in MLPERF_SHARES:
        word = "held" if comparison.held(share) else "NOT held"
        yield f"{100 * share:g} % of its AUC: {word} (needs {share * reference.auc:.6f})"


def _line(name: str, quality: Quality) -> str:
    return (
        f"{name:<16} {quality.auc:>12.6f} {quality.log_loss:>11.6f} "
        f"{quality.normalised_entropy:>11.6f}"
    )


def _scores(folder: Path, samples: ModelSamples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits of all samples and their labels, float32 [samples] each."""
    logits = np.empty(samples.num_samples, np.float32)
    labels = np.empty(samples.num_samples, np.float32)
    with Scorer.open(folder) as scorer:
        for start in range(0, samples.num_samples, _BATCH):
            stop = min(start + _BATCH, samples.num_samples)
            dense, ids, labels[start:stop] = samples.read(start, stop)
            logits[start:stop] = scorer.score(dense, *ids)
    return _checked(folder, logits), labels


def _quality_of_checkpoint(checkpoint: Path, samples: ModelSamples) -> Quality:
    manifest = read_manifest(checkpoint)
    model = DenseModel(read_dense(checkpoint, manifest), manifest.model)
    logits, labels = [], []
    for start in range(0, samples.num_samples, _WINDOW):
        pieces = samples.pieces_of(start, min(start + _WINDOW, samples.num_samples))
        for dense, vectors, its_labels in CheckpointSamples(checkpoint, manifest, samples, pieces):
            logits.append(model.logits(dense, vectors))
            labels.append(its_labels)
    return quality_of(_checked(checkpoint, np.concatenate(logits)), np.concatenate(labels))


def _checked(origin: Path, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    good = np.isfinite(logits)
    if not good.all():
        sample = int(np.argmin(good))
        raise ValueError(
            f"{origin}: sample {sample}: expected a finite logit, found {logits[sample]}; its "
            "weights are not finite or too large, take another checkpoint"
        )
    return logits


def _check_reference(artifact: Artifact, reference: Artifact) -> None:
    """Checks that an artifact is of the float32 model that another one was made from."""
    for what, expected, found in (
        ("tables", FLOAT32, reference.tables),
        ("dense", FLOAT32, reference.dense),
        ("model", artifact.model, reference.model),
        ("step", artifact.step, reference.step),
    ):
        if expected != found:
            raise ValueError(
                f"--reference: {reference.folder}: {what}: expected {expected}, found {found}; "
                "export the same checkpoint with --tables=float32 --dense=float32"
            )


def _kept(artifact: Artifact, fingerprint: str) -> tuple[Quality | None, str]:
    """What the artifact's model card says of the float32 model on these samples, and who found it.

    Raises:
        ValueError: The model card is damaged.
    """
    if MODEL_CARD_JSON not in artifact.files:
        return None, ""
    verify_artifact(artifact, [MODEL_CARD_JSON])
    card = json.loads((artifact.folder / MODEL_CARD_JSON).read_text(encoding="utf-8"))
    measured, training = card["cost"]["quality"], card["training"]
    if measured and measured["reference"] and measured["data"] == fingerprint:
        return _quality(measured["reference"]), measured["origin"]
    if training["evaluation"] and training["data"].get("test") == fingerprint:
        return _quality(training["evaluation"]), _FROM_TRAINING
    return None, ""


def _quality(content: Mapping[str, Any]) -> Quality:
    """Figures from JSON, where those that are not defined are null."""
    auc, log_loss, entropy = (
        np.nan if content[name] is None else float(content[name])
        for name in ("auc", "log_loss", "normalised_entropy")
    )
    return Quality(auc, log_loss, entropy, content["samples"])
