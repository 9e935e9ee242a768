"""The documents agree with the code: their links, file names, code names and error lines exist."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path

import pytest

from dlrm.config import SETTINGS
from dlrm.formats.zip_strict import zip_strict
from dlrm_v3.config import HstuConfig, LearningConfig, StreamConfig
from tests.rules.test_layers import LAYERS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "interact_op/*.md", "tests/*.md")
    for path in ROOT.glob(pattern)
)
README_LINES = 100
SOURCE_FOLDERS = (
    *("dlrm", "preprocess", "launch", "serving", "dlrm_v3", "tools", "interact_op"),
    *("benchmarks", "presets"),
    *("setup", "docs", "tests"),
)
SUFFIXES = "py|sh|md|txt|toml|flags|yaml|png|cc|cu|cuh|h|java"
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `dlrm/train/step.py` or `dlrm/train/step.py:TrainingStep.train`.
CODE_NAME = re.compile(rf"`([\w./]+\.(?:{SUFFIXES}))(?::([\w.]+))?(?:\(\))?`")
# `ShardedEmbedding.update`
MEMBER = re.compile(rf"`([A-Z]\w+)\.(?!(?:{SUFFIXES})`)(\w+)(?:\(\))?`")
FLAG = re.compile(r"(?<![\w-])--([a-z]\w+)")
EXTERNAL_FLAGS = {
    *("network", "disable", "flagfile", "help"),  # of horovodrun and absl
    *("bind", "oversubscribe", "allow"),  # of mpirun
    # Of docker.
    *("add", "hostname"),
    *(
        "build",
        "device",
        "env",
        "gpus",
        "init",
        "ipc",
        "rm",
        "signal",
        "time",
        "ulimit",
        "user",
        "volume",
    ),
    *("cpu", "kill", "ntasks", "wait"),  # of Slurm, up to the first hyphen
    *("artifacts", "backend", "host"),  # of MLflow's server, likewise
    # Of TensorFlow's saved_model_cli, and of TensorFlow Serving.
    *("dir", "tag_set", "signature_def", "model_config_file", "rest_api_port", "port"),
    *("enable_batching", "batching_parameters_file"),
    # Of the systems in docs/coming_from.md.
    *("no_python", "use_env", "nproc_per_node", "model_config", "bin_data_root", "out_root"),
    *("stage", "pull", "benchmarks", "scenarios", "test_mode", "config_ver", "hash_indices"),
    # Of Nsight Systems' nsys profile, and of xprof.
    *("sample", "backtrace", "cudabacktrace", "cpuctxsw", "trace", "logdir"),
}
FIXED = 8  # from this many characters on, a piece of an error line must occur in the code


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The names by which GitHub links to headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_files_and_names_in_the_text_exist(document: Path) -> None:
    for name, symbol in CODE_NAME.findall(prose(document)):
        if "/" in name and name.partition("/")[0] not in SOURCE_FOLDERS:
            continue  # a file of the user's
        beside = document.parent / name
        path = beside if beside.exists() else ROOT / name
        if "/" not in name and not path.exists() and not symbol:
            continue  # a file of the user's, or a module named again without its folder
        assert path.exists(), f"{name}: no such file"
        text = path.read_text(encoding="utf-8", errors="replace")
        for part in filter(None, symbol.split(".")):
            assert defines(text, part), f"{name} does not define {part}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_classes_named_in_the_text_have_their_members(document: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in product()]
    for kind, member in MEMBER.findall(prose(document)):
        assert any(defines(text, kind) and defines(text, member) for text in texts), (
            f"no module defines {kind}.{member}"
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_flags_in_the_text_exist(document: Path) -> None:
    settings = {name for setting in SETTINGS for name in (setting.name, *setting.aliases)}
    for kind in (StreamConfig, HstuConfig, LearningConfig):  # dlrm_v3 makes flags of their fields
        settings |= {field.name for field in dataclasses.fields(kind)}
    for name in sorted(set(FLAG.findall(document.read_text(encoding="utf-8"))) - EXTERNAL_FLAGS):
        assert name in settings or f"--{name}" in programs(), f"no program has --{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_commands_in_the_text_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"python3 -m ([a-z][\w.]*\w)", text):
        path = ROOT / name.replace(".", "/")
        if (ROOT / name.partition(".")[0]).is_dir():
            assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), name
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE):
        assert re.search(rf"^{name}:", rules, re.MULTILINE), f"the Makefile has no {name}"


def defines(text: str, name: str) -> bool:
    """Whether Python source defines a function, class, constant or attribute of that name."""
    pattern = rf"\b(?:def|class) {name}\b|^\s*(?:self\.)?{name}\s*[:=]"
    return bool(re.search(pattern, text, re.MULTILINE))


def product() -> list[Path]:
    """The modules of the product."""
    folders = ("dlrm", "preprocess", "launch", "serving", "dlrm_v3", "tools", "interact_op")
    return [*ROOT.glob("*.py"), *(path for f in folders for path in (ROOT / f).rglob("*.py"))]


def tree_of(document: Path) -> list[str]:
    """The paths of an annotated file tree: two blanks of indentation per level, then a remark."""
    fences = FENCE.findall(document.read_text(encoding="utf-8"))
    (block,) = (block for _, block in fences if "\n  config/" in block)
    paths: list[str] = []
    folders: list[str] = []
    for line in block.splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[level:] = [name] if name.endswith("/") else []
        paths.append("".join(folders) if name.endswith("/") else "".join(folders[:level]) + name)
    return paths


def test_the_file_tree_is_that_of_the_project() -> None:
    listed = tree_of(ROOT / "docs" / "architecture.md")
    for path in listed:
        assert (ROOT / path).exists(), f"{path}: no such file"
    missing = [
        name
        for name in map(identifier, (ROOT / "dlrm").rglob("*.py"))
        if name not in listed
        and not name.endswith(("__init__.py", "version.py"))
        and not any(p.endswith("/") and p.count("/") > 2 and name.startswith(p) for p in listed)
    ]
    assert not missing, f"not in the tree: {', '.join(sorted(missing))}"


def test_the_drawing_shows_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (drawing,) = (block for _, block in FENCE.findall(text) if block.startswith(f" {len(LAYERS)} "))
    drawn = re.split(r"^ \d ", drawing, flags=re.MULTILINE)[:0:-1]
    for number, (groups, line) in enumerate(zip_strict(LAYERS, drawn), 1):
        for group in groups:
            assert group in line, f"layer {number} is drawn without {group}"


def test_the_schemas_on_the_page_are_the_examples() -> None:
    text = (ROOT / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    schemas = [block for kind, block in FENCE.findall(text) if kind == "yaml"]
    for schema, name in zip_strict(schemas, ("schema_example.yaml", "schema_any_log.yaml")):
        assert schema == (ROOT / "preprocess" / name).read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@functools.cache
def programs() -> str:
    """The text of all programs that take flags, those for developers too."""
    folders = ("benchmarks", "setup", "tests/faults")
    paths = [*product(), *(path for f in folders for path in (ROOT / f).rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@functools.cache
def messages() -> str:
    """The strings of the product, `...` for what is filled in; shell scripts as they are."""
    found = []
    for path in product():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values
                )
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    found += [path.read_text(encoding="utf-8") for path in (ROOT / "setup").glob("*.sh")]
    found.append((ROOT / "hvd_wrapper.sh").read_text(encoding="utf-8"))
    return "\n".join(found)


def error_lines() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [block.strip() for kind, block in FENCE.findall(text) if kind == "text"]


@pytest.mark.parametrize("line", error_lines())
def test_quoted_error_lines_are_those_of_the_code(line: str) -> None:
    # Messages are put together of several strings, which meet at punctuation marks.
    for piece in re.split(r"\.\.\.|\w+\.json|[:;,()]", line):
        words = piece.strip(' "')
        if len(words) >= FIXED:
            assert words in messages(), f"no message of the code has {words!r}"
