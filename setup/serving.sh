#!/usr/bin/env bash
# Installs what serving and LoadGen need into a virtual environment: setup/serving.sh .venv
#
# Triton's server is a program in the wheel of nvidia-pytriton. That wheel's own Python layer wants
# NumPy 1 and is not used, so it is installed without its dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?expected the folder of a virtual environment, such as .venv}
triton=nvidia-pytriton==0.7.0

machine=$(uname -m)
if [ "$machine" != x86_64 ]; then
  echo "error: expected x86_64, for which $triton is built, found $machine; serve the SavedModel with TensorFlow Serving there" >&2
  exit 1
fi
"$venv/bin/python" -m pip install --quiet --requirement requirements/serving.txt
"$venv/bin/python" -m pip install --quiet --no-deps "$triton"
