#!/usr/bin/env bash
# Makes the virtual environment .venv with everything that training and tests need.
#
#   PYTHON=python3.12 setup/environment.sh
#
# Needs Python 3.10 - 3.13 with venv, a C++ compiler and make. Says in one line what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
needed_gb=6 # TensorFlow unpacks to 2 GB; pip and the build of Horovod need room beside it

fail() {
  echo "error: $1" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "$python not found; install Python 3.10 - 3.13 with venv: sudo apt-get install python3 python3-venv"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.10 | 3.11 | 3.12 | 3.13) ;;
  *) fail "expected Python 3.10 - 3.13 (TensorFlow 2.21 has no other), found $version at $(command -v "$python"); install one and name it: make PYTHON=python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments; install them: sudo apt-get install python$version-venv"
command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler (${CXX:-g++}) to build Horovod with; install one: sudo apt-get install build-essential"
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$needed_gb" ] || fail "expected $needed_gb GB of free disk in $PWD, found $free_gb GB; free some, or clone onto a larger disk"

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt --requirement requirements-horovod.txt
# Java is the user's own choice: without it Spark's tests are skipped.
.venv/bin/python -m pip install --quiet --requirement requirements-spark.txt
setup/horovod.sh .venv
