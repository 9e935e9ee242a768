# shellcheck shell=bash
# One NVIDIA DGXA100 node: 8 ranks, one for each GPU. To be sourced.
export DGXSYSTEM=DGXA100
export DGXNNODES=1
export DGXNGPU=8
export WALLTIME=00:40:00
export SBATCH_TIMELIMIT=$WALLTIME
export SBATCH_GPUS_PER_NODE=8
export VENV=.venv-sok
export PRESET=presets/dgxa100.flags
