"""Describes an artifact for people, from `artifact.json` alone."""

from __future__ import annotations

from collections.abc import Iterator

from dlrm.formats.quantities import size_text
from serving.artifact import SAVED_MODEL, Artifact
from serving.row_encoding import row_bytes


def describe(artifact: Artifact) -> Iterator[str]:
    """Lines about an artifact: its origin, its shape, how it is stored, and its files."""
    model = artifact.model
    yield f"{artifact.folder}: step {artifact.step:,}"
    bottom, top = ("-".join(map(str, units or ())) for units in (model.bottom_mlp, model.top_mlp))
    yield (
        f"model: {model.num_dense} dense features, bottom MLP {bottom}, top MLP {top}, "
        f"stored as {artifact.dense}"
    )
    crossed = f", {model.cross_layers} cross layers of rank {model.cross_rank} in float32"
    yield f"interaction: {model.interaction}{crossed if model.cross_layers else ''}"
    if model.pooling:
        weights = ", with weights" if model.weighted else ""
        yield (
            f"bags: up to {', '.join(map(str, model.max_ids))} ids of each table (0: one id), "
            f"pooled by {', '.join(model.pooling)}{weights}"
        )
    width = row_bytes(artifact.tables, model.embedding_dim)
    yield (
        f"tables: {len(model.vocab_sizes)} of width {model.embedding_dim}, {artifact.rows:,} rows, "
        f"stored as {artifact.tables}, {width} bytes a row, {size_text(artifact.rows * width)}"
    )
    if artifact.known_ids is not None:
        known, kept = artifact.known_ids, artifact.known_ids.seed is None
        others = "the row that its table shares" if kept else "its initial values"
        yield f"known ids: {sum(known.counts):,}; any other has {others}"
    order = "use, most used first" if artifact.row_order else "key"
    yield f"rows: in order of {order}"
    if not model.pooling:
        yield f"packed ids: {artifact.packing.words} words for {len(model.vocab_sizes)} ids"
    rules = artifact.dictionary
    yield f"raw values: rules {rules['rules']}" if rules else "raw values: no dictionary"
    saved = any(name.startswith(f"{SAVED_MODEL}/") for name in artifact.files)
    yield f"SavedModel: {SAVED_MODEL if saved else 'none'}"
    for name, digest in artifact.files.items():
        yield f"  {name}: {size_text(digest.size)}"
