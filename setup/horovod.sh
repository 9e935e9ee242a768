#!/usr/bin/env bash
# Installs Horovod into a virtual environment, building it against the TensorFlow found there.
#
#   setup/horovod.sh .venv
#
# The build takes some minutes, so its wheel is kept in ~/.cache/dlrm (or XDG_CACHE_HOME), one for
# each combination of Horovod, TensorFlow, Python, processor and GPU library.
# HOROVOD_GPU_OPERATIONS=NCCL builds with NCCL; the default moves tensors over Gloo.
set -euo pipefail

venv=$(realpath "$1")
python=$venv/bin/python
horovod=0.28.1
tensorflow=$("$python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$(uname -m)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dlrm/horovod-$horovod-tensorflow-$tensorflow-$tag-${HOROVOD_GPU_OPERATIONS:-gloo}

build() {
  echo "building Horovod $horovod for TensorFlow $tensorflow ($tag): some minutes, once"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$work" "horovod==$horovod"
  tar -xzf "$work"/horovod-*.tar.gz -C "$work"
  # Collectives inside XLA: the one source that TensorFlow 2.21 no longer compiles, and not used.
  sed -i '/xla_mpi_ops\.cc/d' "$work/horovod-$horovod/horovod/tensorflow/CMakeLists.txt"
  if ! (
    cd "$work/horovod-$horovod"
    export PATH=$venv/bin:$PATH # its cmake, not the system's
    export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
    export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
    "$python" -m pip wheel --no-build-isolation --no-deps --wheel-dir "$work/wheel" . >"$work/log" 2>&1
  ); then
    tail -n 40 "$work/log" >&2
    echo "error: Horovod $horovod did not build against TensorFlow $tensorflow; the compiler's last words are above" >&2
    exit 1
  fi
  # Moved as a whole, so that an interrupted or concurrent build leaves no half wheel.
  mkdir -p "$cache"
  for wheel in "$work"/wheel/*.whl; do
    cp "$wheel" "$cache/.$$"
    mv "$cache/.$$" "$cache/$(basename "$wheel")"
  done
}

compgen -G "$cache/*.whl" >/dev/null || build
"$python" -m pip install --quiet --no-deps "$cache"/*.whl
