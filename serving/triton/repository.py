"""Model repositories: the folders in which servers find models, their versions and configuration.

A version appears complete or not at all, also to a server that looks for new ones. The files of an
artifact are linked where the file system allows it, else copied; they are not opened here.
"""

from __future__ import annotations

import os
import py_compile
import shutil
from pathlib import Path
from typing import Callable

from dlrm.formats import atomic_files
from serving.artifact import DESCRIPTION, SAVED_MODEL, Artifact
from serving.triton import model_config
from serving.triton.model_config import ModelOptions

ARTIFACT = "artifact"  # within a version
CONFIG = "config.pbtxt"
MODELS_CONFIG, BATCHING_CONFIG = "models.config", "batching.config"
PROJECT_VARIABLE = "DLRM_PROJECT"

_INCOMING = ".incoming"
_MODEL_FILE = "model.py"
# The interpreter of the backend ignores PYTHONPATH.
_MODEL = f'''\
"""Has Triton's Python backend answer with the scorer."""

import os
import sys

if "{PROJECT_VARIABLE}" in os.environ:
    sys.path.insert(0, os.environ["{PROJECT_VARIABLE}"])

from serving.triton.backend_model import TritonPythonModel
'''


def add_scorer_version(
    artifact: Artifact,
    repository: Path,
    name: str,
    version: int | None,
    options: ModelOptions,
    *,
    refer: bool = False,
) -> int:
    """Adds a version to a model that Triton's Python backend answers with the scorer.

    Args:
        artifact: The artifact.
        repository: The repository; created if missing.
        name: The name of the model.
        version: The number of the version; None for the next one.
        options: How requests are batched and queued, and how the scorer runs.
        refer: Whether the version refers to the artifact where it is, instead of holding its
            files.

    Returns:
        The number of the version.

    Raises:
        ValueError: The version is there already, or the model has another shape.
        OSError: A file cannot be written.
    """
    config = model_config.scorer_config(
        name, artifact.model, artifact.packing.words, artifact.dictionary is not None, options
    )

    def fill(folder: Path) -> None:
        (folder / _MODEL_FILE).write_text(_MODEL)
        # Else the backend would write it here, and a server that polls would load the model again.
        py_compile.compile(
            os.fspath(folder / _MODEL_FILE),
            dfile=_MODEL_FILE,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        if refer:
            (folder / ARTIFACT).symlink_to(artifact.folder.resolve(), target_is_directory=True)
        else:
            _take(artifact.folder, folder / ARTIFACT)

    return _add_version(repository, name, version, config, fill)


def add_saved_model_version(
    artifact: Artifact, repository: Path, name: str, version: int | None, options: ModelOptions
) -> int:
    """Adds a version to a model that Triton's TensorFlow backend answers with the SavedModel.

    Args, returns and raises as `add_scorer_version`.
    """
    source = _saved_model(artifact)
    config = model_config.saved_model_config(name, artifact.model, options)
    return _add_version(
        repository, name, version, config, lambda folder: _take(source, folder / "model.savedmodel")
    )


def add_tensorflow_serving_version(
    artifact: Artifact, repository: Path, name: str, version: int | None, options: ModelOptions
) -> int:
    """Adds a version to a model of TensorFlow Serving, and writes its two configuration files.

    Args, returns and raises as `add_scorer_version`.
    """
    source = _saved_model(artifact)

    def fill(folder: Path) -> None:
        folder.rmdir()
        _take(source, folder)

    number = _add_version(repository, name, version, None, fill)
    base = os.fspath((repository / name).resolve())
    atomic_files.write_text(
        repository / MODELS_CONFIG, model_config.tensorflow_serving_config(name, base, options)
    )
    atomic_files.write_text(
        repository / BATCHING_CONFIG, model_config.tensorflow_serving_batching(options)
    )
    return number


def has_newest(artifact: Artifact, repository: Path, name: str) -> bool:
    """Whether the newest version of a model is this artifact."""
    versions = versions_of(repository, name)
    if not versions:
        return False
    there = repository / name / str(versions[-1]) / ARTIFACT / DESCRIPTION
    return there.is_file() and there.read_bytes() == (artifact.folder / DESCRIPTION).read_bytes()


def versions_of(repository: Path, name: str) -> list[int]:
    """The versions of a model, ascending; none if the model is not there."""
    folder = repository / name
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(entry) for entry in names if entry.isdecimal())


def _add_version(
    repository: Path,
    name: str,
    version: int | None,
    config: str | None,
    fill: Callable[[Path], None],
) -> int:
    """Fills a new version beside the model and gives it its place; returns its number."""
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"expected --name of a model such as dlrm, found {name!r}")
    there = versions_of(repository, name)
    number = version if version is not None else max(there, default=0) + 1
    if number < 1:
        raise ValueError(f"expected --version of at least 1, found {number}")
    if number in there:
        raise ValueError(
            f"{repository / name}: expected a new version, found that {number} is there already; "
            f"give another --version, such as {max(there) + 1}"
        )
    model = repository / name
    # Not beside the versions: a server that polls would load the model again for each file.
    incoming = repository / f"{_INCOMING}-{os.getpid()}"
    try:
        (incoming / str(number)).mkdir(parents=True)
        fill(incoming / str(number))
        for folder, _, files in os.walk(incoming):
            for file in files:
                atomic_files.sync_file(os.path.join(folder, file))
            atomic_files.sync_directory(folder)
        model.mkdir(exist_ok=True)
        if config is not None:
            _write_config(model / CONFIG, config)
        atomic_files.rename(incoming / str(number), model / str(number))
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return number


def _write_config(path: Path, config: str) -> None:
    """Writes a model's configuration, or checks that the one that is there has the same tensors."""
    if not path.exists():
        atomic_files.write_text(path, config)
        return
    there = "".join(path.read_text(encoding="utf-8").split())
    for line in config.splitlines():
        if "data_type" in line and "".join(line.rstrip(",").split()) not in there:
            raise ValueError(
                f"{path}: expected {line.strip().rstrip(',')} as in the new version, found no such "
                "tensor; give the model of another shape another --name"
            )


def _saved_model(artifact: Artifact) -> Path:
    if not any(file.startswith(f"{SAVED_MODEL}/") for file in artifact.files):
        raise ValueError(
            f"{artifact.folder}: expected a SavedModel, found that this artifact was exported "
            "without; export it again without --no_saved_model"
        )
    return artifact.folder / SAVED_MODEL


def _take(source: Path, target: Path) -> None:
    """Links each file of a folder into a new one, or copies it to another file system."""
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
