#!/usr/bin/env bash
# Installs Horovod into a virtual environment, building it against the TensorFlow found there.
#
#   setup/horovod.sh .venv
#
# HOROVOD_GPU_OPERATIONS=NCCL builds with NCCL: pip's if it is in the environment, else that of
# HOROVOD_NCCL_HOME. The default moves tensors over Gloo.
set -euo pipefail

# shellcheck source=setup/wheels.sh
source "$(dirname "$0")/wheels.sh" "$1"

prepare() {
  # Collectives inside XLA: the one source that TensorFlow 2.21 no longer compiles, and not used.
  sed -i '/xla_mpi_ops\.cc/d' horovod/tensorflow/CMakeLists.txt
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
  export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  if [ "${HOROVOD_GPU_OPERATIONS-}" = NCCL ] && [ -z "${HOROVOD_NCCL_HOME-}" ] && [ -d "$site/nvidia/nccl" ]; then
    use_pip_libraries
    export HOROVOD_NCCL_HOME=$site/nvidia/nccl HOROVOD_NCCL_LINK=SHARED
  fi
}

install_wheel horovod 0.28.1 "${HOROVOD_GPU_OPERATIONS:-gloo}"
