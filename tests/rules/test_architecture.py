"""The rules of the house, read from the source: who imports whom, size, forbidden constructs."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
)
PRODUCT = [
    path for path in MODULES if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")
]
# Text that users get. Shebangs name the system's env, which is everywhere.
TEXTS = [
    *MODULES,
    *(
        path
        for pattern in (
            *("*.sh", "*.flags", "*.md", "*.txt", "*.toml", "Makefile", ".ci/*"),
            *("*.h", "*.cc", "*.cu"),
        )
        for path in ROOT.rglob(pattern)
        if not any(
            part in (".venv", ".venv-sok", ".git", "build") for part in path.relative_to(ROOT).parts
        )
        and not any(part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    ),
]
MACHINE_PATH = re.compile(
    r"(?<![\w.$}{*~])/(home|root|work|tmp|mnt|opt|media|srv|Users)(/\w|\b(?=[\"' ]))"
)


def name_of(path: Path) -> str:
    """The file's dotted name; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names of the modules, or of what is taken from them."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from outside_functions(child)


def imports(path: Path) -> set[str]:
    return imported(ast.walk(parse(path)))


def imports_when_loaded(path: Path) -> set[str]:
    return imported(outside_functions(parse(path)))


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def importers(package: str) -> set[str]:
    """Modules that import it; tests may import what they test."""
    return {
        name_of(path)
        for path in MODULES
        if path.relative_to(ROOT).parts[0] != "tests" and package in top(imports(path))
    }


def layer(*names: str) -> list[Path]:
    """The files of modules or packages."""
    found = [path for path in PRODUCT if name_of(path).partition(".")[0] in names]
    assert {name_of(path).partition(".")[0] for path in found} == set(names)
    return found


def test_the_house_is_found() -> None:
    names = {name_of(path) for path in PRODUCT}
    assert names >= {
        "main",
        "trainer",
        "collective",
        "embedding",
        "embedding.sok",
        "dataset.batches",
    }


def test_only_collective_imports_horovod() -> None:
    assert importers("horovod") == {"collective"}


def test_only_the_sok_backend_imports_sok() -> None:
    assert importers("sparse_operation_kit") <= {"embedding.sok"}
    assert importers("merlin_sok") == set()


def test_only_the_spark_engine_imports_spark() -> None:
    assert {name.rpartition(".")[0] for name in importers("pyspark")} == {"preprocess.engine_spark"}


def test_the_engines_of_ingest_know_nothing_of_each_other() -> None:
    for engine, other in (("polars", "spark"), ("spark", "polars")):
        for path in PRODUCT:
            if name_of(path).startswith(f"preprocess.engine_{engine}"):
                assert not any(
                    name.startswith(f"preprocess.engine_{other}") for name in imports(path)
                ), path


def test_only_main_reads_flags() -> None:
    assert importers("absl") == {"main"}


def test_nothing_imports_main() -> None:
    assert importers("main") == set()


def test_only_the_model_imports_the_fused_interaction() -> None:
    assert importers("interact_op") - {"benchmarks.interact", "gpu_check"} == {"model"}


def test_only_the_top_imports_run_and_trainer() -> None:
    # A program beside main, which looks at every part.
    product = {name_of(path) for path in PRODUCT} - {"gpu_check"}
    assert importers("run") & product == {"main"}
    assert importers("session") & product == {"run"}
    assert importers("trainer") & product == {"run", "session"}


TOP = {"trainer", "training_step", "run", "session", "data", "launch"}
FORBIDDEN = {
    ("collective", "schedule", "metadata", "record_file", "checksums"): TOP | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "preprocess",
        "split_bin", "checkpoint", "watch", "verification",
    },
    ("packing",): TOP | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "collective",
        "preprocess", "split_bin", "metadata", "record_file", "checksums", "verification",
        "checkpoint", "watch", "tensorflow", "keras",
    },
    ("verification",): TOP | {
        "model", "embedding", "evaluation", "reporting", "config", "collective", "preprocess",
        "split_bin", "checkpoint", "watch", "tensorflow", "keras",
    },
    ("dataset",): TOP | {
        "verification",
        "model", "embedding", "evaluation", "reporting", "config", "collective", "checkpoint",
        "watch", "tensorflow", "keras",
    },
    ("preprocess", "split_bin"): TOP | {
        "model", "embedding", "evaluation", "reporting", "config", "collective", "checkpoint",
        "watch", "tensorflow", "keras",
    },
    ("reporting",): TOP | {
        "model", "embedding", "dataset", "evaluation", "config", "collective", "checkpoint",
        "watch", "tensorflow", "keras",
    },
    ("interact_op",): TOP | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "collective",
        "checkpoint", "watch", "keras",
    },
    ("model",): TOP | {
        "dataset", "embedding", "evaluation", "reporting", "config", "collective", "checkpoint",
        "watch",
    },
    ("embedding", "evaluation"): TOP | {
        "model", "dataset", "reporting", "config", "checkpoint", "watch",
    },
    ("checkpoint",): TOP | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "watch",
    },
    ("watch",): TOP | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "checkpoint",
        "tensorflow", "keras",
    },
    ("launch",): (TOP - {"launch"}) | {
        "model", "dataset", "embedding", "evaluation", "reporting", "config", "collective",
        "checkpoint", "watch", "tensorflow", "keras",
    },
    ("config",): (TOP - {"launch"}) | {"model", "dataset", "embedding", "collective", "tensorflow"},
    ("trainer", "training_step"): {
        "run", "session", "data", "reporting", "checkpoint", "watch", "metadata", "preprocess",
        "split_bin",
    },
}  # fmt: skip


@pytest.mark.parametrize("names", FORBIDDEN, ids="+".join)
def test_dependencies_go_one_way(names: tuple[str, ...]) -> None:
    found = {name_of(path): top(imports(path)) & FORBIDDEN[names] for path in layer(*names)}
    assert {name: bad for name, bad in found.items() if bad} == {}


QUICK = ["main", "config", "schedule", "metadata", "split_bin", "launch", "checkpoint.__main__"]


@pytest.mark.parametrize("name", QUICK)
def test_quick_modules_load_nothing_heavy(name: str) -> None:
    """Flag errors and --help must not wait for TensorFlow, also through what these import."""
    files = {name_of(path): path for path in PRODUCT}
    waiting, loaded = [name], set()
    while waiting:
        current = waiting.pop()
        if current in loaded or current not in files:
            continue
        loaded.add(current)
        found = imports_when_loaded(files[current])
        assert not top(found) & {"tensorflow", "keras", "horovod", "polars", "matplotlib"}, current
        waiting += [*found, *(dotted.rpartition(".")[0] for dotted in found)]
    assert name in loaded


def test_no_cycle() -> None:
    names = {name_of(path): path for path in PRODUCT}
    graph = {
        name: {
            target
            for dotted in imports_when_loaded(path)
            for target in (dotted, dotted.rpartition(".")[0])
            # A package may gather what its own modules define.
            if target in names and target != name
        }
        for name, path in names.items()
    }
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module(path: Path) -> None:
    tree, text = parse(path), path.read_text(encoding="utf-8")
    documentation = ast.get_docstring(tree)
    assert documentation, "no docstring"
    assert documentation.splitlines()[0].endswith((".", ":", "?"))
    if path in PRODUCT:
        assert len(text.splitlines()) <= 400
    if len(tree.body) > 1:
        assert "from __future__ import annotations" in text


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_evaluation_no_shell_no_bare_except(path: Path) -> None:
    tree = parse(path)
    assert not top(imports(path)) & {"pickle", "cloudpickle", "marshal", "dill"}
    for call in calls(tree):
        if isinstance(call.func, ast.Name):
            assert call.func.id not in ("eval", "exec"), f"line {call.lineno}"
        for keyword in call.keywords:
            assert keyword.arg != "shell", f"line {call.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


@pytest.mark.parametrize(
    "path", [path for path in PRODUCT if "preprocess" not in path.parts], ids=name_of
)
def test_the_benchmark_shape_stands_in_no_function(path: Path) -> None:
    """13 dense, 26 tables and width 128 come from metadata and flags; only raw logs have 13."""
    for function in ast.walk(parse(path)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and type(node.value) is int:
                    assert node.value not in (13, 26, 128), f"line {node.lineno}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_of_one_machine(path: Path) -> None:
    if path == Path(__file__).resolve():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not MACHINE_PATH.search(line), f"line {number}: {line}"


def test_the_search_for_machine_paths_finds_some() -> None:
    for line in ("/home/me/data", 'open("/tmp/x")', "cd /work/project", "'/opt/y'", "TMPDIR=/tmp "):
        assert MACHINE_PATH.search(line)
    for line in ("#!/usr/bin/env bash", "a/home/b", "$ROOT/tmp/x", "/proc/self", "{root}/work/x"):
        assert not MACHINE_PATH.search(line)
