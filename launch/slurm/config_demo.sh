# shellcheck shell=bash
# Two nodes without GPUs, one rank each, and the small model of `make train`. To be sourced.
export DGXSYSTEM=demo
export DGXNNODES=2
export DGXNGPU=1
export WALLTIME=00:30:00
export SBATCH_TIMELIMIT=$WALLTIME
unset SBATCH_GPUS_PER_NODE # of another config
export VENV=.venv
export PRESET=presets/demo.flags
