"""The scorer's library: one that was built from another version is refused before it is called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serving import scorer_library


@pytest.mark.parametrize(
    ("source", "found"),
    [("", "an older one"), ("long long scorer_model_bytes(void) { return 8; }", "8")],
)
def test_a_library_of_another_version(
    source: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libscorer.so"
    compiler = ["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(library)]
    subprocess.run(compiler, input=source, text=True, check=True)
    monkeypatch.setattr(scorer_library, "LIBRARY", library)
    with pytest.raises(OSError, match=f"found {found}; build it with `make serving_core`"):
        scorer_library.load.__wrapped__()


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_library, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(OSError, match="not built; build it with `make serving_core`"):
        scorer_library.load.__wrapped__()
