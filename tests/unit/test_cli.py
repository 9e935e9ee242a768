"""What all commands share: exit codes, one-line errors, and readers that go early."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Callable

import pytest

from dlrm import cli
from tests.support.processes import ROOT, without_modules

# Prints lines, as many as the first argument says and flushed if there is a second.
PRINT = """
import sys
from pathlib import Path
from dlrm import cli

def command():
    for line in range(int(sys.argv[1])):
        print(line, flush=len(sys.argv) > 2)
    return 3

sys.exit(cli.exit_code(command))
"""


def raise_error(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (lambda: 3, 3, ""),
        (raise_error(ValueError("expected 1, found 2")), 1, "error: expected 1, found 2\n"),
        (raise_error(OSError(28, "No space", "x")), 1, "error: [Errno 28] No space: 'x'\n"),
        # Another pipe than standard output: a fault like any other.
        (raise_error(BrokenPipeError(32, "Broken pipe")), 1, "error: [Errno 32] Broken pipe\n"),
        (raise_error(KeyboardInterrupt()), 130, "interrupted; nothing was kept\n"),
    ],
)
def test_exit_codes(
    command: Callable[[], int], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(command, "interrupted; nothing was kept") == code
    assert capsys.readouterr() == ("", line)


def test_a_fault_of_the_program_passes_through() -> None:
    with pytest.raises(KeyError):
        cli.exit_code(raise_error(KeyError("x")))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["1"], 3),  # the command was done when its output was written
        (["1", "flush"], 141),
        (["100000"], 141),
        (["100000", "flush"], 141),
    ],
)
def test_a_command_whose_reader_has_gone_ends_quietly(arguments: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PRINT, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (code, "")


@pytest.mark.parametrize(
    "command",
    [
        ["split_bin.py"],
        ["-m", "preprocess"],
        ["-m", "preprocess.synthetic"],
        ["-m", "preprocess.verify"],
        ["-m", "dlrm.checkpoint"],
        ["-m", "benchmarks.step"],
    ],
    ids=" ".join,
)
def test_without_the_packages_one_line_names_the_remedy(command: list[str], tmp_path: Path) -> None:
    environment = without_modules(tmp_path, "numpy")
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "without numpy; run `make setup`" in ended.stderr


QUICK_IMPORTS = """
import gc
import sys
from dlrm import cli

with cli.quick_imports():
    import tensorflow
    import keras
print(sorted(name for name in sys.modules if name.partition(".")[0] in sys.argv[1:]))
print(gc.isenabled(), gc.get_freeze_count() > len(sys.modules))
import matplotlib
print(matplotlib.__version__)
"""


def test_quick_imports_leave_out_what_only_keras_uses_and_only_there() -> None:
    pytest.importorskip("matplotlib")
    hidden = ["matplotlib", "pandas", "sklearn"]
    ended = subprocess.run(
        [sys.executable, "-c", QUICK_IMPORTS, *hidden], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    loaded, collector, version = ended.stdout.splitlines()
    assert loaded == "[]"
    assert collector == "True True"
    assert version == importlib.metadata.version("matplotlib")


def test_quick_imports_keep_what_is_loaded_and_a_collector_that_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = types.ModuleType("pandas")
    monkeypatch.setitem(sys.modules, "pandas", loaded)
    gc.disable()
    try:
        with cli.quick_imports():
            assert sys.modules["pandas"] is loaded
        assert sys.modules["pandas"] is loaded
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
