"""The tree of a submission: the description of the system, the code, and the logs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm.formats import atomic_files

BENCHMARK = "dlrm"
IMPLEMENTATION = "tensorflow"
_PARTS = {"systems", "benchmarks", "results"}  # of a submitter's folder
_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("dlrm", "preprocess", "interact_op", "launch", "presets", "requirements", "setup")
_FOLDERS_TOO = ("tools", "docs", "serving", "dlrm_v3")
_FILES = ("*.py", "*.sh", "*.md", "*.toml", "*.txt", "Makefile", "LICENSE")
# Hidden files are not accepted; the others are made anew.
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.so", "*.o", "build")


def build_tree(out: Path, description: Mapping[str, Any], logs: Sequence[Path]) -> Path:
    """Builds a submitter's folder; one that is there is replaced.

    Args:
        out: The folder in which it is built.
        description: The system.
        logs: The logs of the runs.

    Returns:
        The submitter's folder.

    Raises:
        ValueError: The folder holds something else, or the logs.
    """
    tree = out / file_name(description["submitter"])
    _check_replaceable(tree, logs)
    system = file_name(description["system_name"])
    results = tree / "results" / system / BENCHMARK
    code = tree / "benchmarks" / BENCHMARK / "implementations" / IMPLEMENTATION
    if tree.exists():
        shutil.rmtree(tree)
    for folder in (tree / "systems", results, code):
        folder.mkdir(parents=True)
    text = json.dumps(description, indent=2) + "\n"
    atomic_files.write_text(tree / "systems" / f"{system}.json", text)
    for number, log in enumerate(logs):
        shutil.copyfile(log, results / f"result_{number}.txt")
    for name in (*_FOLDERS, *_FOLDERS_TOO):
        shutil.copytree(_ROOT / name, code / name, ignore=_LEFT_OUT)
    for pattern in _FILES:
        for path in _ROOT.glob(pattern):
            shutil.copyfile(path, code / path.name)
    return tree


def _check_replaceable(tree: Path, logs: Sequence[Path]) -> None:
    """Checks that nothing but an earlier tree is lost when the folder is replaced.

    Raises:
        ValueError: The folder holds something else, or the logs.
    """
    others = sorted({path.name for path in tree.glob("*")} - _PARTS)
    if others:
        raise ValueError(
            f"{tree}: expected no folder, or a submitter's tree to replace, found {others[0]} in "
            "it; name another OUT"
        )
    for log in logs:
        if log.resolve().is_relative_to(tree.resolve()):
            raise ValueError(
                f"{log}: expected logs outside of {tree}, which is built anew; name copies of them"
            )


def results_folder(tree: Path) -> Path:
    """The folder of a tree's logs."""
    return next((tree / "results").glob(f"*/{BENCHMARK}"))


def file_name(text: str) -> str:
    """A name without what MLPerf does not accept in one: blanks, and a dot at its beginning."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "unnamed"
