"""What is found of Triton's wheel, and what a user reads where it is missing."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from serving.triton import installation
from tests.support.processes import ROOT

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of the wheel, with empty files."""
    triton = tmp_path / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/__pycache__/utils.pyc",
        f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
    ):
        (triton / name).parent.mkdir(parents=True, exist_ok=True)
        (triton / name).touch()
    spec = ModuleSpec("pytriton", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "pytriton")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return triton


def test_backend_and_stub_lie_side_by_side(wheel: Path, tmp_path: Path) -> None:
    installation.lay_out_backend(tmp_path / "backends")
    found = {
        path.relative_to(tmp_path / "backends").as_posix()
        for path in (tmp_path / "backends").rglob("*")
        if path.is_file()
    }
    assert found == {"python/libtriton_python.so", "python/triton_python_backend_stub"}
    assert installation.server_program() == wheel / "bin" / "tritonserver"


def test_the_server_finds_its_libraries_and_this_python(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "mine")
    environment = installation.server_environment()
    first, _, last = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert (first, last) == (str(tmp_path / "nvidia_pytriton.libs"), "mine")
    assert environment["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
    assert environment["DLRM_PROJECT"] == str(ROOT)


def test_a_python_without_a_stub_is_named(wheel: Path, tmp_path: Path) -> None:
    stubs = wheel / "python_backend_stubs"
    (stubs / VERSION).rename(stubs / "2.7")
    with pytest.raises(OSError, match=rf"a stub for Python {VERSION}, found those for 2\.7"):
        installation.lay_out_backend(tmp_path / "backends")


def test_a_missing_server_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="no package nvidia-pytriton; run `make serve-setup`"):
        installation.server_program()
