# shellcheck shell=bash
# Two nodes without GPUs, one rank each, and the small model of `make train`. Only exports; to be
# sourced.
export DGXSYSTEM=demo
export DGXNNODES=2
export DGXNGPU=1
export WALLTIME=00:30:00
export SBATCH_TIMELIMIT=$WALLTIME
export FLAGS="--flagfile=presets/demo.flags${FLAGS:+ $FLAGS}"
