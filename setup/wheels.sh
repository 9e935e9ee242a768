# Sourced by the scripts that build a package against the TensorFlow of a virtual environment.
#
#   source setup/wheels.sh .venv; install_wheel horovod 0.28.1 gloo
#
# A build takes minutes, so wheels are kept in ~/.cache/dlrm (or XDG_CACHE_HOME), one for each
# combination of package, TensorFlow, Python, processor and variant.
# The script defines `prepare`, which is run in the package's unpacked source before it is built.
# shellcheck shell=bash

venv=$(realpath "$1")
python=$venv/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

fail() {
  echo "error: $1" >&2
  exit 1
}

# The libraries of NVIDIA that pip has installed: found by compilers now, and by what they link when
# it is loaded, wherever the environment lies then.
use_pip_libraries() {
  local name
  export CPATH=${CPATH-} LIBRARY_PATH=${LIBRARY_PATH-} LDFLAGS=${LDFLAGS-}
  LDFLAGS+=" -Wl,-rpath,'\$ORIGIN'" # the package's other libraries
  for name in nccl cudnn curand; do
    [ -d "$site/nvidia/$name/lib" ] || continue
    CPATH=$site/nvidia/$name/include:$CPATH
    LIBRARY_PATH=$site/nvidia/$name/lib:$LIBRARY_PATH
    # Both packages keep their libraries two folders below the environment's site-packages.
    LDFLAGS+=" -Wl,-rpath,'\$ORIGIN/../../nvidia/$name/lib'"
  done
  # Linkers ask for the name without a version.
  [ ! -e "$site/nvidia/nccl/lib/libnccl.so.2" ] || ln -sf libnccl.so.2 "$site/nvidia/nccl/lib/libnccl.so"
}

# install_wheel PACKAGE VERSION VARIANT
install_wheel() {
  local tensorflow tag cache
  tensorflow=$("$python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$(uname -m)
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/dlrm/$1-$2-tensorflow-$tensorflow-$tag-$3
  if ! compgen -G "$cache/*.whl" >/dev/null; then
    echo "building $1 $2 for TensorFlow $tensorflow ($tag, $3): some minutes, once"
    build_wheel "$1" "$2" "$cache" || fail "$1 $2 did not build against TensorFlow $tensorflow; the compiler's last words are above"
  fi
  "$python" -m pip install --quiet --no-deps "$cache"/*.whl
}

# build_wheel PACKAGE VERSION FOLDER
build_wheel() (
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  export PATH=$venv/bin:$PATH # its cmake and nvcc, not the system's
  if [ -x "$venv/bin/nvcc-g++" ]; then
    export CC=$venv/bin/nvcc-gcc CXX=$venv/bin/nvcc-g++ CUDAHOSTCXX=$venv/bin/nvcc-g++
  fi
  # Unpacked afresh for each build: configuring rewrites files of the source.
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$work" "$1==$2" &&
    tar -xzf "$work/$1-$2.tar.gz" -C "$work" &&
    cd "$work/$1-$2" &&
    prepare || exit
  "$python" -m pip wheel --no-build-isolation --no-deps --wheel-dir "$work/wheel" . >"$work/log" 2>&1 || {
    tail -n 40 "$work/log" >&2
    exit 1
  }
  # Moved as a whole, so that an interrupted or concurrent build leaves no half wheel.
  mkdir -p "$3"
  for wheel in "$work"/wheel/*.whl; do
    cp "$wheel" "$3/.$$" && mv "$3/.$$" "$3/$(basename "$wheel")" || exit
  done
)
