# shellcheck shell=bash
# One NVIDIA DGX2 node: 16 ranks, one for each GPU. To be sourced.
export DGXSYSTEM=DGX2
export DGXNNODES=1
export DGXNGPU=16
export WALLTIME=00:40:00
export SBATCH_TIMELIMIT=$WALLTIME
export SBATCH_GPUS_PER_NODE=16
export VENV=.venv-sok
export PRESET=presets/dgx2.flags
