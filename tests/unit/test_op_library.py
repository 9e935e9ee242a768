"""The libraries of operations: what is said of one that is missing or damaged."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import tensorflow as tf

import interact_op
from dlrm import cpu_ops
from dlrm_v3 import hstu_op


@pytest.mark.parametrize(
    "module", [interact_op, cpu_ops, hstu_op], ids=lambda module: module.__name__
)
def test_one_line_where_it_cannot_be_loaded(module: ModuleType, tmp_path: Path) -> None:
    name = module.__name__.rpartition(".")[2]

    def fails(build: Path) -> str:
        with pytest.raises(OSError, match=f"make {name}") as caught:
            module.load(build)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "not built" in fails(tmp_path / "none")
    for version, text in (("1.15.5", "other"), (tf.__version__, "not a library")):
        folder = tmp_path / f"tensorflow-{version}"
        folder.mkdir()
        (folder / module.LIBRARY).write_text(text)
        words = fails(tmp_path)
        assert tf.__version__ in words
        assert ("built for tensorflow-1.15.5" in words) == (version == "1.15.5")
