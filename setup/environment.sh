#!/usr/bin/env bash
# Creates a virtual environment with everything that training and tests need.
#
#   PYTHON=python3.12 setup/environment.sh    # .venv: the newest TensorFlow
#   setup/environment.sh sok                  # .venv-sok: TensorFlow 2.14 and SparseOperationKit
#
# TRAINING_ONLY=1 leaves out what only tests, linters and Spark need, as in the container image.
#
# It needs Python with venv, a C++ compiler and make; for sok also what setup/cuda.sh names. If
# something is missing, it says so in one line.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-default}
python=${PYTHON:-python3}

fail() {
  echo "error: $1" >&2
  exit 1
}

# needed_gb: TensorFlow takes 2 GB, CUDA's libraries 4 GB; pip and the builds need room as well.
case $profile in
  default) venv=.venv needed_gb=6 pythons="3.10 3.11 3.12 3.13" range="3.10 - 3.13" tensorflow=2.21 again="make" ;;
  sok) venv=.venv-sok needed_gb=12 pythons="3.9 3.10 3.11" range="3.9 - 3.11" tensorflow=2.14 again="make sok" ;;
  *) fail "expected the profile default or sok, found '$profile'" ;;
esac

command -v "$python" >/dev/null || fail "$python not found; install Python $range with venv: sudo apt-get install python3 python3-venv"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $pythons " in
  *" $version "*) ;;
  *) fail "expected Python $range (TensorFlow $tensorflow supports no other), found $version at $(command -v "$python"); install one and name it: $again PYTHON=python${pythons##* }" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments; install them: sudo apt-get install python$version-venv"
command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler (${CXX:-g++}) to build Horovod with; install one: sudo apt-get install build-essential"
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$needed_gb" ] || fail "expected $needed_gb GB of free disk in $PWD, found $free_gb GB; free some, or clone onto a larger disk"

[ -x $venv/bin/python ] || "$python" -m venv $venv
# Java is optional: without it Spark's tests are skipped.
if [ "$profile" = default ]; then
  packages=requirements/dev.txt
  [ -z "${TRAINING_ONLY-}" ] || packages=requirements.txt
  $venv/bin/python -m pip install --quiet --requirement $packages --requirement requirements/horovod.txt
  [ -n "${TRAINING_ONLY-}" ] || $venv/bin/python -m pip install --quiet --requirement requirements/spark.txt
  setup/horovod.sh $venv
else
  # The compilers come first: what is missing is reported before gigabytes are downloaded.
  setup/cuda.sh $venv
  packages=requirements/sok-dev.txt
  [ -z "${TRAINING_ONLY-}" ] || packages=requirements/sok.txt
  $venv/bin/python -m pip install --quiet --requirement $packages
  HOROVOD_GPU_OPERATIONS=NCCL setup/horovod.sh $venv
  setup/sok.sh $venv
fi
