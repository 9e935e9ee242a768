"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dlrm.formats import atomic_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_several_files_appear_together_after_all_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    events = []

    def fsync(descriptor: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(old: Path, new: Path, move=os.replace) -> None:
        events.append(f"{old.name} -> {new.name}")
        move(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_files.whole_files(paths, lambda: events.append("ready")) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert not any(path.exists() for path in paths)
    assert events == ["file", "file", "ready", "a.tmp -> a", "b.tmp -> b", "directory"]
    assert names(tmp_path) == ["a", "b"]


def test_after_an_error_every_file_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.tmp").write_text("left by a run that was killed")

    def write() -> None:
        with atomic_files.whole_files([tmp_path / "a", tmp_path / "b"]) as (first, _):
            assert not first.exists()
            first.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_texts_are_written_in_utf_8(tmp_path: Path) -> None:
    atomic_files.write_text(tmp_path / "a", "5 \u20ac\n")
    assert (tmp_path / "a").read_bytes() == b"5 \xe2\x82\xac\n"


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.tmp'"):
        atomic_files.write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_a_file_system_without_synced_directories_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_rename_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    atomic_files.rename(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "new"
