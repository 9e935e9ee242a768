"""Makes an artifact, and with it a SavedModel, from a checkpoint of any number of ranks.

The folder is built under a temporary name beside its final one and renamed when everything in it is
on the disk: an artifact is complete or absent. How each file is made is the concern of the modules
that it calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from dlrm import cli
from dlrm.checkpoint.known_rows import KnownRows
from dlrm.checkpoint.manifest import read_manifest
from dlrm.checkpoint.safetensors_file import FileDigest, digest_file, write_tensors
from dlrm.checkpoint.table_reader import TableReader
from dlrm.formats import atomic_files
from dlrm.formats.folder_lock import lock_folder
from dlrm.formats.packed_ids import plan
from dlrm.formats.quantities import size_text
from serving import scorer_library
from serving.artifact import (
    DENSE_FILE,
    DICTIONARY_FILE,
    KNOWN_IDS_FILE,
    POSITIONS,
    ROW_ORDER_FILE,
    SAVED_MODEL,
    TABLES_FILE,
    Artifact,
)
from serving.calibration import read_calibration
from serving.checkpoint_samples import ModelSamples
from serving.dense_int8 import quantise
from serving.dense_weights import read_dense
from serving.dictionary import write_dictionary
from serving.known_ids import ServedTables
from serving.model_card import Costs, write_model_card
from serving.row_encoding import FLOAT32, INT8
from serving.row_frequencies import read_counts
from serving.row_order import order_by_use
from serving.table_files import write_tables

if TYPE_CHECKING:
    from serving.evaluate import Comparison

_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class ExportOptions:
    """The choices of an export.

    Attributes:
        dictionary: An output folder of preprocess; None for no dictionary.
        tables: How rows are stored, one of `TABLE_TYPES`.
        dense: How the MLPs are stored, one of `DENSE_TYPES`.
        calibration: The calibration of int8 MLPs; None with float32.
        row_frequencies: The counts by which rows are sorted; None for the order of keys.
        data: A split folder on which the artifact is evaluated for the model card, or None.
        saved_model: Whether to write a SavedModel too.
    """

    dictionary: Path | None = None
    tables: str = FLOAT32
    dense: str = FLOAT32
    calibration: Path | None = None
    row_frequencies: Path | None = None
    data: Path | None = None
    saved_model: bool = True

    def __post_init__(self) -> None:
        """Refuses options that contradict each other.

        Raises:
            ValueError: An option needs another one; the message names it.
        """
        if self.dense == INT8 and self.calibration is None:
            raise ValueError(
                "--dense=int8: expected a calibration, found none; make one with "
                "`python3 -m serving calibrate` and give --calibration=FILE"
            )
        if self.dense != INT8 and self.calibration is not None:
            raise ValueError(
                f"--calibration: expected with --dense=int8 alone, found --dense={self.dense}; "
                "leave it out, or give --dense=int8"
            )


def export(
    checkpoint: Path, out: Path, options: ExportOptions, on_message: Callable[[str], None]
) -> Artifact:
    """Writes an artifact.

    Args:
        checkpoint: The checkpoint.
        out: The folder to make, which must not exist.
        options: The choices.
        on_message: Called with a line for each file that is complete.

    Returns:
        The description of the artifact.

    Raises:
        ValueError: The checkpoint is damaged, something does not fit it, or `out` exists.
        OSError: A file cannot be read or written.
    """
    manifest = read_manifest(checkpoint)
    model = manifest.model
    if model.pooling and not model.max_ids:
        raise ValueError(
            f"{checkpoint}: expected the most ids of each table's bags, found a checkpoint of an "
            "earlier version, without them; resume the run for a step with this version"
        )
    weights = read_dense(checkpoint, manifest)
    calibration = read_calibration(options.calibration) if options.calibration else None
    if options.data is not None:
        # Before hours of work: the data fits, and the scorer is built.
        ModelSamples(options.data, model)
        scorer_library.load()
    with _whole_folder(out) as folder, TableReader(checkpoint, manifest) as reader:
        served = ServedTables(reader, KnownRows(reader, manifest) if model.dynamic else None, model)
        files = _Files(out, on_message)
        rules = None
        if options.dictionary is not None:
            rules, digest = write_dictionary(options.dictionary, model, folder)
            files.add(DICTIONARY_FILE, digest)
        dense = quantise(weights, calibration, model) if calibration else weights
        files.add(DENSE_FILE, write_tensors(folder / DENSE_FILE, dense), options.dense)
        if served.known_ids is not None:
            files.add(KNOWN_IDS_FILE, served.write_ids(folder))
        order = None
        if options.row_frequencies is not None:
            counts = read_counts(options.row_frequencies, model.vocab_sizes)
            order = order_by_use(served.row_counts(counts))
            digest = write_tensors(folder / ROW_ORDER_FILE, {POSITIONS: order.positions})
            files.add(ROW_ORDER_FILE, digest)
        digest, errors = write_tables(served.sources, folder / TABLES_FILE, options.tables, order)
        files.add(TABLES_FILE, digest, options.tables)
        artifact = Artifact(
            folder,
            model,
            options.tables,
            options.dense,
            manifest.position.step,
            order is not None,
            plan(model.vocab_sizes),
            rules,
            files.digests,
            served.known_ids,
        )
        if options.saved_model:
            for name, digest in _write_saved_model(checkpoint, artifact).items():
                files.add(name, digest)
        costs = Costs(errors, calibration, _evaluate(artifact, checkpoint, options.data))
        for name, digest in write_model_card(artifact, manifest, weights, costs).items():
            files.add(name, digest)
        artifact.write()
    return dataclasses.replace(artifact, folder=out)


class _Files:
    """The files of an artifact that are complete.

    Args:
        out: The folder in which they will be.
        on_message: Called with a line for each.

    Attributes:
        digests: The digest of each file by name.
    """

    def __init__(self, out: Path, on_message: Callable[[str], None]) -> None:
        self._out, self._on_message = out, on_message
        self.digests: dict[str, FileDigest] = {}

    def add(self, name: str, digest: FileDigest, stored: str = "") -> None:
        """Adds a file, and tells how its values are stored."""
        self.digests[name] = digest
        note = f"{stored}, " if stored else ""
        self._on_message(f"{self._out / name}: {note}{size_text(digest.size)}")


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Yields the temporary folder that becomes `out` at the end, or is removed after an error.

    What a killed export of the same folder left is removed first.

    Raises:
        ValueError: The folder exists, or another process is making it.
    """
    if out.exists():
        raise ValueError(f"{out}: already exists; remove it, or choose another OUT")
    unfinished = out.with_name(_UNFINISHED + out.name)
    descriptor = lock_folder(unfinished)
    try:
        for left in unfinished.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield unfinished
        for folder in (unfinished, *unfinished.rglob("*/")):
            if folder.is_dir():
                atomic_files.sync_directory(folder)
        atomic_files.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _write_saved_model(checkpoint: Path, artifact: Artifact) -> dict[str, FileDigest]:
    """Writes the SavedModel; returns the digest of each of its files."""
    folder = artifact.folder
    # It alone needs TensorFlow, whose libraries announce themselves while they load.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with cli.stderr_on_failure():
        from serving.saved_model import write_saved_model

    write_saved_model(checkpoint, artifact, folder / SAVED_MODEL)
    files = sorted(path for path in (folder / SAVED_MODEL).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def _evaluate(artifact: Artifact, checkpoint: Path, data: Path | None) -> Comparison | None:
    """The artifact's quality on a split folder, beside the float32 model's."""
    if data is None:
        return None
    artifact.write()  # The scorer reads it; the folder's name still says that it is unfinished.
    from serving.evaluate import evaluate

    return evaluate(artifact.folder, data, checkpoint=checkpoint)
