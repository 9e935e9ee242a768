"""The report on an environment, and the scripts that make one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run
from tools import doctor
from tools.doctor import Diagnosis, ProbeError, ask, diagnose, format_report

SETUP = ROOT / "setup"


def installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return diagnose()


@pytest.mark.runs
def test_this_environment(found: Diagnosis) -> None:
    """Whichever profile it is: what is there is described, what is not is named with the remedy."""
    assert found.versions["tensorflow"] == metadata.version("tensorflow")
    assert "Gloo" in found.exchanges
    assert ("NCCL" in found.exchanges) == installed("merlin-sok")
    assert bool(found.sok_kernels) == installed("merlin-sok")
    assert all(where == ["GPU"] for where in found.sok_kernels.values())
    assert any("make sok" in problem for problem in found.problems) != installed("merlin-sok")
    for line in format_report(found):
        assert line == line.strip()
        assert "\n" not in line


@pytest.mark.runs
def test_sok_brings_the_ops_of_its_lookups(found: Diagnosis) -> None:
    if not installed("merlin-sok"):
        pytest.skip("SparseOperationKit is in the profile sok: make test-runs PROFILE=sok")
    assert {"DistSelect", "GroupLookup", "LookupForward", "Reorder"} <= found.sok_kernels.keys()


@pytest.mark.runs
def test_sok_on_a_gpu(found: Diagnosis) -> None:
    if not installed("merlin-sok"):
        pytest.skip("SparseOperationKit is in the profile sok: make test-runs PROFILE=sok")
    if not found.gpus:
        pytest.skip("SparseOperationKit's ops have kernels for GPUs only, and TensorFlow sees none")
    assert not [problem for problem in found.problems if "SparseOperationKit" in problem]


def test_help_and_errors_come_without_a_report() -> None:
    command = [sys.executable, "-m", "tools.doctor"]
    ended = run([*command, "--help"], time_limit=60)
    assert ended.code == 0
    assert ended.output.startswith("usage: python3 -m tools.doctor")
    assert "Horovod's exchanges" not in ended.output
    ended = run([*command, "--json"], time_limit=60)
    assert (ended.code, ended.output.count("\n")) == (1, 1)
    assert ended.output.startswith("error: unrecognized arguments: --json")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libfoo.so.1: not there')", "libfoo.so.1: not there"),
        ("import os; os.abort()", "ended with code -6"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_a_library_that_fails_is_a_line(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_probe.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(doctor.PROBES, "horovod", "failing_probe")
    monkeypatch.setattr(doctor, "TIME_LIMIT", 1 if "sleep" in code else 60)
    with pytest.raises(ProbeError, match=words):
        ask("horovod")


def answers(monkeypatch: pytest.MonkeyPatch, packages: set[str], given: dict[str, Any]) -> None:
    """Packages that are installed, and what each probe gives or fails with."""

    def version(package: str) -> str:
        if package not in packages:
            raise metadata.PackageNotFoundError(package)
        return "1.2"

    def answer(probe: str) -> Any:
        if isinstance(given[probe], Exception):
            raise given[probe]
        return given[probe]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "ask", answer)


def test_a_complete_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"device_name": "H200", "compute_capability": [9, 0]}
    given = {
        "tensorflow": {"cuda": "11.8", "gpus": [gpu]},
        "horovod": ["NCCL", "Gloo"],
        "sok": {"Reorder": ["GPU"], "Lost": []},
        "interact": ["CPU", "GPU"],
    }
    answers(monkeypatch, {"tensorflow", "horovod", "merlin-sok"}, given)
    found = diagnose()
    assert found.problems == []
    for line in (
        *("tensorflow 1.2", "TensorFlow's CUDA 11.8", "GPU 0: H200, compute capability 9.0"),
        *("SOK op Lost: no kernel", "SOK op Reorder: kernels for GPU"),
        *("Horovod's exchanges: NCCL, Gloo", "fused interaction: kernels for CPU and GPU"),
    ):
        assert line in format_report(found)


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, set(), {})
    assert any(line.startswith("missing: TensorFlow") for line in format_report(diagnose()))


def test_what_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "tensorflow": {"cuda": None, "gpus": []},
        "horovod": ["Gloo"],
        "sok": ProbeError("OSError: libcuda.so.1: not there"),
        "interact": ProbeError("OSError: it is not built"),
    }
    answers(monkeypatch, {"tensorflow", "horovod", "merlin-sok"}, given)
    monkeypatch.setattr(doctor, "driver_version", lambda: "535.1")
    problems = "\n".join(diagnose().problems)
    for words in ("driver 535.1", "without NCCL", "libcuda.so.1", "fused interaction: it is not"):
        assert words in problems
    assert format_report(Diagnosis({})) == [
        *("driver none", "GPUs none", "Horovod's exchanges: none", "fused interaction: no kernel")
    ]


def program(path: Path, words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


def run_script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SETUP / name), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("profile", "version", "range_", "remedy"),
    [
        ("default", "3.9", "3.10 - 3.13", "make PYTHON=python3.13"),
        ("sok", "3.12", "3.9 - 3.11", "make sok PYTHON=python3.11"),
    ],
)
def test_another_python_is_refused_in_one_line(
    profile: str, version: str, range_: str, remedy: str, tmp_path: Path
) -> None:
    python = program(tmp_path / "python", f"echo {version}")
    done = run_script("environment.sh", profile, PYTHON=str(python))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for words in ("error: ", range_, f"found {version}", remedy):
        assert words in done.stderr


def test_another_profile_is_refused_in_one_line() -> None:
    done = run_script("environment.sh", "torch")
    assert done.returncode == 1
    assert done.stderr == "error: expected the profile default or sok, found 'torch'\n"


def test_a_named_toolkit_is_put_into_the_environment(tmp_path: Path) -> None:
    """nvcc is called by its own path, with the rest of its toolkit first on the PATH."""
    cuda, venv = tmp_path / "cuda 11", tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    version = 'echo "Cuda compilation tools, release 11.8, V11.8.89"'
    program(cuda / "bin" / "nvcc", f'{version}; ptxas; echo "$0 $@"')
    program(cuda / "bin" / "ptxas", "echo our ptxas")
    compiler = program(tmp_path / "bin" / "g++", "echo 11")
    program(tmp_path / "bin" / "mpicxx", "")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = run_script("cuda.sh", str(venv), CUDA_HOME=str(cuda), CXX=str(compiler), PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    told = subprocess.run([venv / "bin" / "nvcc", "-c", "x"], capture_output=True, text=True)
    assert told.stdout.splitlines()[1:] == ["our ptxas", f"{cuda}/bin/nvcc -c x"]
    assert os.readlink(venv / "bin" / "nvcc-g++") == str(compiler)
    assert os.readlink(venv / "bin" / "nvcc-gcc") == str(compiler.with_name("gcc"))
