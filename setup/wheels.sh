# Functions for the scripts that build a package against the TensorFlow of a virtual environment.
#
#   source setup/wheels.sh .venv; install_wheel horovod 0.28.1 gloo
#
# A build takes minutes, so wheels are kept in ~/.cache/dlrm (or XDG_CACHE_HOME), one for each
# combination of package, TensorFlow, Python, processor and variant.
# The calling script defines `prepare`, which runs in the unpacked source before the build.
# shellcheck shell=bash

venv=$(realpath "$1")
python=$venv/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

fail() {
  echo "error: $1" >&2
  exit 1
}

# Makes NVIDIA's libraries from pip known to compilers and linkers. What is linked finds them at run
# time through relative paths, so the environment can be moved.
use_pip_libraries() {
  local name
  export CPATH=${CPATH-} LIBRARY_PATH=${LIBRARY_PATH-} LDFLAGS=${LDFLAGS-}
  LDFLAGS+=" -Wl,-rpath,'\$ORIGIN'" # other libraries of the same package
  for name in nccl cudnn curand; do
    [ -d "$site/nvidia/$name/lib" ] || continue
    CPATH=$site/nvidia/$name/include:$CPATH
    LIBRARY_PATH=$site/nvidia/$name/lib:$LIBRARY_PATH
    # Both packages keep their libraries two folders below the environment's site-packages.
    LDFLAGS+=" -Wl,-rpath,'\$ORIGIN/../../nvidia/$name/lib'"
  done
  # Linkers look for the name without a version.
  [ ! -e "$site/nvidia/nccl/lib/libnccl.so.2" ] || ln -sf libnccl.so.2 "$site/nvidia/nccl/lib/libnccl.so"
}

# install_wheel PACKAGE VERSION VARIANT
install_wheel() {
  local tensorflow tag cache
  tensorflow=$("$python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$(uname -m)
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/dlrm/$1-$2-tensorflow-$tensorflow-$tag-$3
  if ! compgen -G "$cache/*.whl" >/dev/null; then
    echo "building $1 $2 for TensorFlow $tensorflow ($tag, $3): takes minutes, once"
    build_wheel "$1" "$2" "$cache" || fail "$1 $2 did not build against TensorFlow $tensorflow; see the end of the compiler's output above"
  fi
  "$python" -m pip install --quiet --no-deps --force-reinstall "$cache"/*.whl
}

# build_wheel PACKAGE VERSION FOLDER
build_wheel() (
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  export PATH=$venv/bin:$PATH # its cmake and nvcc, not the system's
  if [ -x "$venv/bin/nvcc-g++" ]; then
    export CC=$venv/bin/nvcc-gcc CXX=$venv/bin/nvcc-g++ CUDAHOSTCXX=$venv/bin/nvcc-g++
  fi
  # Each build unpacks the source again, because configuring changes its files.
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$work" "$1==$2" &&
    tar -xzf "$work/$1-$2.tar.gz" -C "$work" &&
    cd "$work/$1-$2" &&
    prepare || exit
  "$python" -m pip wheel --no-build-isolation --no-deps --wheel-dir "$work/wheel" . >"$work/log" 2>&1 || {
    tail -n 40 "$work/log" >&2
    exit 1
  }
  # A wheel is renamed once complete, so an interrupted or concurrent build leaves no partial one.
  mkdir -p "$3"
  for wheel in "$work"/wheel/*.whl; do
    cp "$wheel" "$3/.$$" && mv "$3/.$$" "$3/$(basename "$wheel")" || exit
  done
)
