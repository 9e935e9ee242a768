#!/usr/bin/env bash
# Installs Horovod into a virtual environment, building it against the TensorFlow found there.
#
#   setup/horovod.sh .venv
#
# HOROVOD_GPU_OPERATIONS=NCCL builds with NCCL: that of HOROVOD_NCCL_HOME, else the environment's
# own package. HOROVOD_WITH_MPI=1 builds with the MPI whose mpicxx is on PATH, so that mpirun can
# start the ranks. Tensors are exchanged through Gloo unless one of them is chosen.
set -euo pipefail

# shellcheck source=setup/wheels.sh
source "$(dirname "$0")/wheels.sh" "$1"

prepare() {
  # Leaves out collectives inside XLA, which are unused and do not compile with TensorFlow 2.21.
  sed -i '/xla_mpi_ops\.cc/d' horovod/tensorflow/CMakeLists.txt
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1
  if [ -z "${HOROVOD_WITH_MPI-}" ]; then
    export HOROVOD_WITHOUT_MPI=1
  fi
  export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  if [ "${HOROVOD_GPU_OPERATIONS-}" = NCCL ] && [ -z "${HOROVOD_NCCL_HOME-}" ] && [ -d "$site/nvidia/nccl" ]; then
    use_pip_libraries
    export HOROVOD_NCCL_HOME=$site/nvidia/nccl HOROVOD_NCCL_LINK=SHARED
  fi
}

variant=${HOROVOD_GPU_OPERATIONS:-gloo}
if [ -n "${HOROVOD_WITH_MPI-}" ]; then
  command -v mpicxx >/dev/null || fail "expected mpicxx on PATH to build Horovod with MPI, found none; install Open MPI: sudo apt-get install libopenmpi-dev openmpi-bin"
  variant+=-mpi
fi
install_wheel horovod 0.28.1 "$variant"

# horovodrun imports TensorFlow for each question about how Horovod was built, longer than a rank takes
# to start. It was built here, so the answers are known.
mpi=${HOROVOD_WITH_MPI:+True}
sed -i "s/^def gloo_built(.*/&\n    return True/; s/^def mpi_built(.*/&\n    return ${mpi:-False}/" \
  "$site/horovod/common/util.py"
