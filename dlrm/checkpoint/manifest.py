"""The description of a checkpoint: `manifest.json`, written after all other files.

Its presence means that the checkpoint is complete. Plain data: no tensors, no ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlrm.checkpoint.safetensors_file import FileDigest
from dlrm.formats import atomic_files
from dlrm.formats.json_files import sum_of_json
from dlrm.layers.interaction_shape import InteractionShape

FILE_NAME = "manifest.json"
FORMAT = 1
DENSE_FILE = "dense.safetensors"
ROWS = "rows"  # the tensor of a tables file


def tables_file(rank: int, ranks: int) -> str:
    """The file of one rank's rows: local row r is key r * ranks + rank, as in training."""
    return f"tables-{rank:05d}-of-{ranks:05d}.safetensors"


def is_weight(name: str) -> bool:
    """Whether a tensor of the dense file is a weight, such as `top_kernel_0`.

    What else training keeps there has a dot in its name, such as `adam.mean.top_kernel_0`.
    """
    return "." not in name


@dataclass(frozen=True)
class ModelShape:
    """What the weights of a run must fit; a checkpoint of another shape cannot be loaded.

    A checkpoint of tables alone, without dense weights, has None for what shapes those; so has one
    of another architecture than the DLRM, whose dense weights are shaped by the run's settings.

    Attributes:
        num_dense: Number of dense features of a sample.
        vocab_sizes: Number of rows of each table.
        embedding_dim: Number of values in a row.
        bottom_mlp: Units of the bottom MLP's layers.
        top_mlp: Units of the top MLP's layers.
        architecture: Name of the model to which the weights belong.
        interaction: The kind of the interaction.
        cross_layers: Number of its cross layers.
        cross_rank: Rank of their matrices.
        pooling: How each table pools its bags of ids; empty if no table has bags.
        max_ids: The most ids of a bag of each table, 0 of a table without; empty likewise. Data may
            have others.
        weighted: Whether ids have weights.
        dynamic: Whether ids have a row only once they occurred.
    """

    num_dense: int | None
    vocab_sizes: tuple[int, ...]
    embedding_dim: int
    bottom_mlp: tuple[int, ...] | None
    top_mlp: tuple[int, ...] | None
    # What older manifests leave out:
    architecture: str = "DLRM"
    interaction: str = "dot"
    cross_layers: int = 0
    cross_rank: int = 0
    pooling: tuple[str, ...] = ()
    max_ids: tuple[int, ...] = ()
    weighted: bool = False
    dynamic: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelShape:
        """The shape of a JSON object with its fields, where tuples have become lists."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**fields)

    @property
    def interaction_shape(self) -> InteractionShape:
        """The interaction, which knows widths and weights."""
        return InteractionShape(self.interaction, self.cross_layers, self.cross_rank)

    def differences(self, run: ModelShape, *, may_widen: bool = False) -> list[str]:
        """Each difference between this, the checkpoint's shape, and that of a run.

        Args:
            run: The shape of the run.
            may_widen: Whether tables of the run that have more rows are no difference.
        """
        if self.architecture != run.architecture:
            return [f"architecture: checkpoint {self.architecture}, run {run.architecture}"]
        found = []
        for name in ("num_dense", "embedding_dim", "bottom_mlp", "top_mlp"):
            ours, theirs = getattr(self, name), getattr(run, name)
            if ours is not None and ours != theirs:
                found.append(f"{name}: checkpoint {_text(ours)}, run {_text(theirs)}")
        if self.bottom_mlp is not None:
            for name in ("interaction", "cross_layers", "cross_rank"):
                before, now = getattr(self, name), getattr(run, name)
                if before != now and (name == "interaction" or self.interaction == run.interaction):
                    found.append(f"{name}: checkpoint {before}, run {now}")
            if self.pooling != run.pooling:
                before, now = (",".join(m.pooling) or "one id" for m in (self, run))
                found.append(f"bags: checkpoint {before}, run {now}")
        if self.dynamic != run.dynamic:
            before, now = ("ids that occurred" if m.dynamic else "all ids" for m in (self, run))
            found.append(f"rows (--embedding): checkpoint of {before}, run of {now}")
        if len(self.vocab_sizes) != len(run.vocab_sizes):
            found.append(f"tables: checkpoint {len(self.vocab_sizes)}, run {len(run.vocab_sizes)}")
            return found
        for table, (rows, others) in enumerate(zip(self.vocab_sizes, run.vocab_sizes)):
            if rows > others or (rows < others and not may_widen):
                found.append(f"rows of table {table}: checkpoint {rows}, run {others}")
        return found


@dataclass(frozen=True)
class Position:
    """The progress of training: the next step and its first sample.

    Attributes:
        step: Number of steps done.
        epoch: Number of completed passes over the training data; of a stream, which is read once,
            the number of completed timestamps.
        next_sample: Next sample of the current epoch; of a stream, the next request of the current
            timestamp.
    """

    step: int
    epoch: int
    next_sample: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        position: The progress of training.
        model: The shape of the weights.
        settings: The value of every flag of the run that wrote it, by name.
        data: The fingerprint of each part of the data, by name.
        ranks: Number of ranks that wrote the tables.
        files: The digest of each file of the checkpoint, by name.
    """

    position: Position
    model: ModelShape
    settings: Mapping[str, Any]
    data: Mapping[str, str]
    ranks: int
    files: Mapping[str, FileDigest]

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`, durably."""
        content = {"format": FORMAT, **asdict(self)}
        content["files"] = {name: digest.to_json() for name, digest in self.files.items()}
        content["crc32"] = sum_of_json(content)
        atomic_files.write_text(folder / FILE_NAME, json.dumps(content, indent=1))

    def damage(self, folder: Path) -> Iterator[str]:
        """Yields a line for each file that is missing or of the wrong size, without reading it."""
        for name, digest in self.files.items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size is None:
                yield f"{path}: no such file"
            elif size != digest.size:
                yield (
                    f"{path}: expected {digest.size} bytes, found {size}: it ends at offset {size}"
                )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        ValueError: The directory holds no checkpoint, or the manifest is damaged.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected a checkpoint, found no {FILE_NAME} in it") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    try:
        if content.pop("crc32") != sum_of_json(content):
            raise ValueError(f"{path}: damaged: its CRC-32 is not the one that was written")
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path}: expected format {FORMAT}, found {content['format']}; "
                "read it with the version that wrote it"
            )
        return Manifest(
            Position(**content["position"]),
            ModelShape.from_json(content["model"]),
            content["settings"],
            content["data"],
            content["ranks"],
            {name: FileDigest.from_json(entry) for name, entry in content["files"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: missing or malformed {error}") from None


def _text(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
