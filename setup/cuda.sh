#!/usr/bin/env bash
# Finds what builds GPU code for TensorFlow 2.14: CUDA 11.8's nvcc, a g++ that it accepts, and MPI's
# headers, which SparseOperationKit requires. In an environment they are named nvcc, nvcc-g++ and
# nvcc-gcc.
#
#   setup/cuda.sh .venv-sok
#   sudo setup/cuda.sh         # only installs what is missing
#
# It looks in CUDA_HOME, the PATH and the usual folders. On Debian 12, as root or with passwordless
# sudo, it installs what it does not find; CUDA is in Debian's component non-free, for which it adds
# a separate file to apt's sources. It never installs or replaces a GPU driver.
set -euo pipefail

sources=/etc/apt/sources.list.d/dlrm-non-free.sources

fail() {
  echo "error: $1" >&2
  exit 1
}

find_nvcc() {
  local candidate
  for candidate in ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} $(type -ap nvcc) /usr/local/cuda-11.8/bin/nvcc /usr/local/cuda/bin/nvcc /usr/bin/nvcc; do
    if [[ $candidate != */.venv*/* && $("$candidate" --version 2>/dev/null) == *"release 11.8,"* ]]; then
      echo "$candidate"
      return
    fi
  done
}

# nvcc 11.8 refuses a g++ newer than 11.
find_compiler() {
  local candidate major
  for candidate in ${CXX:-} g++-11 g++-10 g++-9 g++; do
    major=$("$candidate" -dumpversion 2>/dev/null | cut -d. -f1) || true
    if ((${major:-0} >= 9 && major <= 11)); then
      command -v "$candidate"
      return
    fi
  done
}

find_mpi() {
  command -v mpicxx || command -v mpic++ || true
}

look() {
  nvcc=$(find_nvcc) compiler=$(find_compiler) mpi=$(find_mpi)
  missing=() packages=()
  [ -n "$nvcc" ] || missing+=("CUDA 11.8's nvcc") packages+=(nvidia-cuda-toolkit)
  [ -n "$compiler" ] || missing+=("g++ 9 - 11") packages+=(g++-11)
  [ -n "$mpi" ] || missing+=("MPI's headers") packages+=(libopenmpi-dev)
}

# Fails with what is missing and the given remedy.
lack() {
  local list
  list=$(printf ', %s' "${missing[@]}")
  fail "GPU code for TensorFlow 2.14 cannot be built here: no ${list:2}; $1"
}

# Debian's copy of the driver's libraries, libcuda1, would clash with a driver from elsewhere.
driver_not_from_debian() {
  [ -e /proc/driver/nvidia/version ] && ! dpkg -s libcuda1 >/dev/null 2>&1
}

# Runs apt-get; prints its output only if it fails.
apt_get() {
  local output
  output=$("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" 2>&1) || {
    tail -n 20 <<<"$output" >&2
    return 1
  }
}

update() {
  apt_get -o APT::Update::Error-Mode=any update || lack "apt-get update failed, see its output above; make the mirror reachable and try again"
}

install_packages() {
  local mirror
  echo "installing with apt-get: ${packages[*]} (with CUDA 1.7 GB to fetch, 6 GB on the disk)" >&2
  update
  if [[ ${packages[*]} == *nvidia-cuda-toolkit* && $(apt-cache policy nvidia-cuda-toolkit) != *"Candidate: 11.8"* ]]; then
    # The mirror that this machine already uses.
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' | awk '/^main bookworm / { print $3; exit }')
    [ -n "$mirror" ] || lack "expected a mirror of Debian bookworm among apt's sources, found none; add one to /etc/apt/sources.list.d"
    "${as_root[@]}" tee "$sources" >/dev/null <<SOURCES
Types: deb
URIs: $mirror
Suites: bookworm
Components: contrib non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    update
  fi
  apt_get install --yes --no-install-recommends "${packages[@]}" || lack "apt-get install ${packages[*]} failed, see its output above"
}

look
if ((${#missing[@]})); then
  nvidia="install NVIDIA's CUDA Toolkit 11.8 (without its driver) and name it: CUDA_HOME=/usr/local/cuda-11.8 make sok"
  if ! grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then
    [ -n "$nvcc" ] || lack "$nvidia"
    lack "install them, on Ubuntu with: sudo apt-get install ${packages[*]}"
  fi
  [ -n "$nvcc" ] || ! driver_not_from_debian || lack "Debian's would replace parts of this machine's GPU driver; $nvidia"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || lack "install them: sudo setup/cuda.sh"
    as_root=(sudo -n)
  fi
  install_packages
  look
  ((${#missing[@]} == 0)) || lack "apt-get has installed ${packages[*]}, but they are not found"
fi
(($#)) || exit 0

# nvcc finds its toolkit through its own path, but calls some of its tools by name, so its folder
# must come before any other toolkit on the PATH.
bin=$1/bin
# shellcheck disable=SC2016
printf '#!/bin/sh\nPATH="%s:$PATH" exec "%s" "$@"\n' "$(dirname "$nvcc")" "$nvcc" >"$bin/nvcc"
chmod +x "$bin/nvcc"
ln -sf "$compiler" "$bin/nvcc-g++"
ln -sf "${compiler/g++/gcc}" "$bin/nvcc-gcc"
