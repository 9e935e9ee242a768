#!/usr/bin/env bash
# Trains once. The launchers of launch/slurm and launch/docker start it: in a step of Slurm it is
# one rank of many, otherwise it starts all ranks of this machine. Its exit code is main.py's; 75
# says that a signal stopped the training after a checkpoint, and that starting again resumes it.
#
# Reads:
#   RUN_DIR      folder for this training's results and checkpoints
#   DATADIR      folder with the split data (empty: FLAGS must say where data is from)
#   DGXNGPU      ranks on each machine; Slurm knows it already
#   SEED         seed of the training (empty: main.py's default)
#   BATCH_SIZE   global batch size, and
#   LR_ARGS      flags of the learning rate, both for configurations in MLPerf's form
#   PRESET       flag file of the model (default: presets/terabyte.flags, unless FLAGS name one)
#   FLAGS        more flags of main.py, separated by blanks; they win over all others
#   MLPERF       1 writes MLPerf's log to RUN_DIR/mlperf.txt
#   VENV         the environment in the project's folder (default: .venv); if there is none, the
#                python3 on PATH is used
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 1
}

[[ -n ${RUN_DIR-} ]] || fail "expected RUN_DIR, the folder for results and checkpoints, found none; set it, or start launch/slurm/run.sub or launch/docker/run_with_docker.sh"
[[ -n ${SLURM_STEP_ID-}${DGXNGPU-} ]] || fail "expected DGXNGPU, the number of ranks, found none; set it, or source a config such as launch/slurm/config_demo.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"
export DLRM_RESTARTS=${DLRM_RESTARTS:-${SLURM_RESTART_COUNT:-0}} # among the live metrics

read -ra rate <<<"${LR_ARGS-}"
read -ra more <<<"${FLAGS-}"
flags=()
[[ -n ${PRESET-} || ${FLAGS-} == *--flagfile* ]] || PRESET=presets/terabyte.flags
[[ -z ${PRESET-} ]] || flags+=("--flagfile=$PRESET")
[[ -z ${BATCH_SIZE-} ]] || flags+=("--global_batch_size=$BATCH_SIZE")
[[ -z ${DATADIR-} ]] || flags+=("--data_dir=$DATADIR")
[[ -z ${SEED-} ]] || flags+=("--seed=$SEED")
[[ ${MLPERF-} != 1 ]] || flags+=("--mlperf_log=$RUN_DIR/mlperf.txt")
flags+=("${rate[@]}" "--run_dir=$RUN_DIR" "--checkpoint_dir=$RUN_DIR/checkpoints" "${more[@]}")

if [[ -n ${SLURM_STEP_ID-} ]]; then
  exec ./hvd_wrapper.sh python3 -m launch.srun main.py "${flags[@]}"
fi
exec python3 -m launch -np "$DGXNGPU" -- main.py "${flags[@]}"
