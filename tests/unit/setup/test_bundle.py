"""The bundle without its packages: what install.sh makes of it, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from setup import bundle
from tests.support.processes import ROOT

pytestmark = pytest.mark.runs

# What a host has that has nothing: no Python of this machine can be found.
BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter and project in parts of 4 MB; a package's place is taken by one file."""

    def one_file(target: Path) -> list[str]:
        target.mkdir()
        (target / "only.py").write_text("answer = 42\n")
        return ["only==1"]

    folder = tmp_path_factory.mktemp("bundle") / "packed"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "add_packages", one_file)
        bundle.write(folder, 4 << 20, "0")
    return folder


def install(packed: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [packed / "install.sh", target], env=BARE, capture_output=True, text=True, check=False
    )


def test_what_is_installed_runs_by_itself(packed: Path, tmp_path: Path) -> None:
    assert len(list(packed.glob("python.tar.gz.*"))) > 1, "parts"
    done = install(packed, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    moved = tmp_path / "moved"
    (tmp_path / "there").rename(moved)  # nothing in it knows where it was
    script = "import ctypes, json, lzma, only, sqlite3, ssl, sys; print(only.answer, sys.prefix)"
    done = subprocess.run(
        [moved / "bin" / "python3", "-c", script],
        env=BARE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, prefix = done.stdout.split()
    assert answer == "42"
    assert os.path.samefile(prefix, moved / "python")
    assert (moved / "dlrm" / "main.py").read_bytes() == (ROOT / "main.py").read_bytes()


def test_a_damaged_or_missing_part_is_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    part = copy / "packages.tar.xz.000"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for change in (lambda: None, part.unlink):
        change()
        done = install(copy, tmp_path / "there")
        assert done.returncode == 1
        assert "packages.tar.xz.000" in done.stderr
        assert "copy it again" in done.stderr
        assert not (tmp_path / "there").exists()


def test_a_folder_that_is_there_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = install(packed, tmp_path / "mine")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_older_glibc_is_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    script = (copy / "install.sh").read_text()
    (copy / "install.sh").write_text(script.replace(platform.libc_ver()[1], "99.1"))
    done = install(copy, tmp_path / "there")
    assert done.returncode == 1
    assert "expected glibc 99.1 or later, found 2." in done.stderr


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 25])
def test_parts(size: int, tmp_path: Path) -> None:
    data = bytes(range(size))
    parts = bundle.Parts(tmp_path / "stem", 10)
    parts.write(io.BytesIO(data))
    pieces = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert b"".join(pieces) == data
    assert all(len(piece) == 10 for piece in pieces[:-1])
    assert parts.digests == {
        f"stem.{i:03}": hashlib.sha256(piece).hexdigest() for i, piece in enumerate(pieces)
    }
