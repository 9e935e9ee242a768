#!/usr/bin/env bash
# Installs SparseOperationKit into a virtual environment. It is built against the environment's
# TensorFlow, NCCL and cuDNN, with the compilers that setup/cuda.sh links into it.
#
#   setup/sok.sh .venv-sok
#
# It is built for this machine's GPUs, or for A100 and H100 if there are none.
# SOK_COMPILE_GPU_SM="70;80" selects others, of 70, 75, 80 and 90.
set -euo pipefail

# shellcheck source=setup/wheels.sh
source "$(dirname "$0")/wheels.sh" "$1"

# Prints the architectures of this machine's GPUs in SOK's notation; code for 8.0 also runs on 8.6
# and 8.9.
found_architectures() {
  command -v nvidia-smi >/dev/null || return 0
  { nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true; } |
    sed -nE 's/^7\.[02]$/70/p; s/^7\.5$/75/p; s/^8\.[0-9]$/80/p; s/^9\.0$/90/p' | sort -u | paste -sd ';'
}

architectures=${SOK_COMPILE_GPU_SM:-$(found_architectures)}
architectures=${architectures:-80;90}

prepare() {
  use_pip_libraries
  export NCCL_DIR=$site/nvidia/nccl SOK_COMPILE_GPU_SM=$architectures
  # The libraries are copied from the build folder and must not contain its paths.
  export SKBUILD_CONFIGURE_OPTIONS=-DCMAKE_SKIP_BUILD_RPATH=ON
}

install_wheel merlin-sok 2.1.0 "sm${architectures//;/-}"
message=$("$python" -c '
import horovod.tensorflow as hvd
hvd.init()
import sparse_operation_kit
' 2>&1 >/dev/null) || fail "SparseOperationKit is built, but cannot be imported: $(tail -n 1 <<<"$message")"
