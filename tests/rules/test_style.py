"""How every file is written: docstring, size, names, forbidden constructs, the root's entries."""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.source import MODULES, PRODUCT, files, imports, parse

LONGEST_MODULE = 350  # lines

MOST_ENTRIES = 26
ROOT_MODULES = {"main.py", "model.py", "dataset.py", "split_bin.py"}
ROOT_FILES = ROOT_MODULES | {
    *("README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("Makefile", "pyproject.toml", "requirements.txt", "hvd_wrapper.sh"),
}
ROOT_FOLDERS = {
    *("dlrm", "preprocess", "launch", "interact_op", "tools", "benchmarks", "presets", "setup"),
    *("serving", "dlrm_v3", "requirements", "docs", "tests"),
}
NOT_COMMITTED = {"build", "__pycache__"}

IMPERATIVES = {
    *("Add", "Build", "Check", "Compute", "Create", "Cut", "Get", "Give", "Load", "Make", "Open"),
    *("Plan", "Print", "Raise", "Read", "Return", "Run", "Save", "Take", "Write", "Yield"),
}
SECTIONS = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:    .*\n)+)", re.MULTILINE)
# An entry begins with a capital letter, or with code or the type and shape of an array.
SENTENCE = re.compile(r'(?:[A-Z0-9`\["]|(?:u?int|float|bool)\d*[ ,]).*\.', re.DOTALL)

TEXTS = files(
    *("*.py", "*.sh", "*.sub", "*.flags", "*.md", "*.txt", "*.toml", "*.yaml", "Makefile", ".ci/*"),
    *("*.h", "*.cc", "*.cu", "*.java"),
)
# Shebangs name the system's env, which is everywhere.
MACHINE_PATH = re.compile(
    r"(?<![\w.$}{*~])/(home|root|work|tmp|mnt|opt|media|srv|Users)(/\w|\b(?=[\"' ]))"
)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_begins_with_what_it_is_for(name: str) -> None:
    tree = parse(MODULES[name])
    documentation = ast.get_docstring(tree)
    assert documentation, "no docstring"
    assert documentation.splitlines()[0].endswith((".", ":", "?"))
    if any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body):
        assert "from __future__ import annotations" in MODULES[name].read_text(encoding="utf-8")


def entries(documentation: str) -> Iterator[str]:
    """The texts in the sections of a docstring, without the names that they explain."""
    for title, section in SECTIONS.findall(f"{documentation}\n"):
        if title == "Returns":
            yield section.strip()
        else:
            for entry in re.split(r"\n    (?! )", section.strip()):
                yield entry.partition(": ")[2]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_docstrings_are_sentences(name: str) -> None:
    """No summary is an imperative, and every entry of a section reads as a sentence."""
    for node in ast.walk(parse(MODULES[name])):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        if documentation := ast.get_docstring(node):
            line = f"line {node.body[0].lineno}"
            assert documentation.split()[0] not in IMPERATIVES, line
            assert getattr(node, "name", "") != "__init__", f"{line}: belongs to the class"
            for entry in entries(documentation):
                assert SENTENCE.fullmatch(entry), f"{line}: {entry}"


def test_the_search_for_fragments_finds_some() -> None:
    section = "Does it.\n\nArgs:\n    a: {}\n    b: Whole\n        entry.\n"
    for text, good in (("Whole entry.", 1), ("int64 [n].", 1), ("of it.", 0), ("No stop", 0)):
        found = [bool(SENTENCE.fullmatch(entry)) for entry in entries(section.format(text))]
        assert found == [good, True]


@pytest.mark.parametrize("name", sorted(PRODUCT))
def test_a_module_is_short(name: str) -> None:
    lines = len(PRODUCT[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_MODULE, f"{lines} lines"


def test_no_class_name_stands_twice() -> None:
    modules = collections.defaultdict(set)
    for name, path in PRODUCT.items():
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef):
                modules[node.name.lstrip("_")].add(name)
    twice = {name: where for name, where in modules.items() if len(where) > 1}
    assert not twice


def test_the_root_holds_what_users_call_and_edit() -> None:
    visible = {
        path.name
        for path in ROOT.iterdir()
        if not path.name.startswith(".") and path.name not in NOT_COMMITTED
    }
    assert visible <= ROOT_FILES | ROOT_FOLDERS
    assert len(visible) <= MOST_ENTRIES
    assert {path.name for path in ROOT.glob("*.py")} == ROOT_MODULES


@pytest.mark.parametrize("name", sorted(PRODUCT))
def test_no_evaluation_no_shell_no_bare_except(name: str) -> None:
    assert not imports(name) & {"pickle", "cloudpickle", "marshal", "dill"}
    for node in ast.walk(parse(PRODUCT[name])):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec"), f"line {node.lineno}"
            assert all(word.arg != "shell" for word in node.keywords), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


def rewritten_by_autograph(tree: ast.Module) -> list[int]:
    """The lines of each `tf.function` that is not told to do without autograph."""
    plain = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "autograph=False" in (ast.unparse(word) for word in node.keywords)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) == "tf.function"
        and id(node) not in plain
    ]


@pytest.mark.parametrize(
    "name", [name for name in sorted(PRODUCT) if name.partition(".")[0] != "benchmarks"]
)
def test_no_function_is_rewritten_by_autograph(name: str) -> None:
    """Autograph reads and rewrites all that a graph calls, which is most of the time of tracing."""
    assert not rewritten_by_autograph(parse(PRODUCT[name]))


def test_the_search_for_autograph_finds_some() -> None:
    source = "@tf.function\ndef f(): pass\ng = tf.function(f)\nh = tf.function(f, autograph=False)"
    assert rewritten_by_autograph(ast.parse(source)) == [1, 3]


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The functions of a module, methods too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(PRODUCT)
        if name.partition(".")[0] not in ("preprocess", "benchmarks")
    ],
)
def test_the_benchmark_shape_stands_in_no_function(name: str) -> None:
    """13 dense, 26 tables and width 128 come from metadata and flags; only raw logs have 13."""
    for function in functions(parse(PRODUCT[name])):
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
