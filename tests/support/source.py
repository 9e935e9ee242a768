"""The project's source as data: its modules, their imports, and the texts that users get.

Reads files only, and imports none of them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.processes import ROOT

NOT_SOURCE = {"build", "__pycache__"}


def files(*patterns: str) -> list[Path]:
    """Files of the project that match a pattern, without hidden and built ones."""
    return sorted(
        path
        for pattern in patterns
        for path in ROOT.rglob(pattern)
        if path.is_file() and not hidden_or_built(path.relative_to(ROOT))
    )


def hidden_or_built(path: Path) -> bool:
    """Whether a path below the root is not the project's own source."""
    # .ci is the project's; other hidden folders are git's, environments and caches.
    folders = {part for part in path.parts[:-1] if part != ".ci"}
    return bool(folders & NOT_SOURCE) or any(part.startswith(".") for part in folders)


def name_of(path: Path) -> str:
    """The file's dotted name; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in files("*.py")}
PRODUCT = {name: path for name, path in MODULES.items() if name.partition(".")[0] != "tests"}


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from outside_functions(child)


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules that some nodes import: ours by their full names, others by their top names."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module_of(dotted) for dotted in found}


def module_of(dotted: str) -> str:
    """Our module that a dotted name names or is defined in; of any other package its top name."""
    name = dotted
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return dotted.partition(".")[0]


def imports(name: str) -> set[str]:
    """All modules that a module of ours imports, also within functions and for types."""
    return imported(ast.walk(parse(MODULES[name]))) - {name}


def imports_when_loaded(name: str) -> set[str]:
    """The modules that importing a module of ours imports directly."""
    return imported(outside_functions(parse(MODULES[name]))) - {name}


def loaded_with(name: str) -> set[str]:
    """All modules that importing a module of ours loads, through others too."""
    waiting, loaded = [name], set()
    while waiting:
        current = waiting.pop()
        if current in loaded:
            continue
        loaded.add(current)
        if current in MODULES:
            # Importing a module runs the packages around it first.
            packages = {current.rsplit(".", n)[0] for n in range(1, current.count(".") + 1)}
            waiting += imports_when_loaded(current) | (packages & MODULES.keys())
    return loaded


def within(name: str, *prefixes: str) -> bool:
    """Whether a module is one of these or inside one of these packages."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
