"""Finds Triton's server in this environment, and lays out its Python backend for this Python.

The wheel of nvidia-pytriton holds the server, the backend and a stub for every version of Python;
the server wants backend and stub in one folder. Independent of models.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from serving.triton.repository import PROJECT_VARIABLE

_ROOT = Path(__file__).resolve().parents[2]
_REMEDY = "run `make serve-setup` and use .venv/bin/python3"


def server_program() -> Path:
    """The program `tritonserver`.

    Raises:
        OSError: It is not installed in this environment.
    """
    return _wheel() / "tritonserver" / "bin" / "tritonserver"


def lay_out_backend(folder: Path) -> None:
    """Makes a folder with the Python backend, for `--backend-directory`.

    Args:
        folder: The folder to make.

    Raises:
        OSError: The server is not installed, or not for this Python.
    """
    triton = _wheel() / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = triton / "python_backend_stubs" / version
    if not stubs.is_dir():
        raise OSError(
            f"{stubs.parent}: expected a stub for Python {version}, found those for "
            f"{', '.join(sorted(os.listdir(stubs.parent)))}; use one of these"
        )
    backend = folder / "python"
    backend.mkdir(parents=True)
    for source in (triton / "backends" / "python", stubs):
        for file in source.iterdir():
            if file.is_file():
                (backend / file.name).symlink_to(file)


def server_environment() -> Mapping[str, str]:
    """The variables with which the server finds its libraries, this Python and this project."""
    libraries = [_wheel().parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    path = os.environ.get("LD_LIBRARY_PATH")
    return {
        "MALLOC_ARENA_MAX": "2",  # with one for each thread, the server takes half as much again
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *filter(None, [path])]),
        # The stub takes the packages of the first python3 on PATH.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        PROJECT_VARIABLE: os.fspath(_ROOT),
    }


def _wheel() -> Path:
    """The folder of nvidia-pytriton's package, whose Python modules are not imported."""
    found = importlib.util.find_spec("pytriton")
    locations = found.submodule_search_locations if found is not None else None
    if not locations or not (Path(locations[0]) / "tritonserver" / "bin").is_dir():
        raise OSError(
            f"expected Triton's server in {sys.prefix}, found no package nvidia-pytriton; {_REMEDY}"
        )
    return Path(locations[0])
