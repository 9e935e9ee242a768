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
#   FLAGS        more flags of main.py, separated by blanks; they win over those above. Without a
#                --flagfile among them, presets/terabyte.flags is used
#   MLPERF       1 writes MLPerf's log to RUN_DIR/mlperf.txt
#   VENV         the environment in the project's folder (default: .venv); if there is none, the
#                python3 on PATH is used
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"
export DLRM_RESTARTS=${DLRM_RESTARTS:-${SLURM_RESTART_COUNT:-0}} # among the live metrics

read -ra rate <<<"${LR_ARGS-}"
read -ra more <<<"${FLAGS-}"
flags=()
[[ ${FLAGS-} == *--flagfile* ]] || flags+=(--flagfile=presets/terabyte.flags)
[[ -z ${BATCH_SIZE-} ]] || flags+=("--global_batch_size=$BATCH_SIZE")
[[ -z ${DATADIR-} ]] || flags+=("--data_dir=$DATADIR")
[[ -z ${SEED-} ]] || flags+=("--seed=$SEED")
[[ ${MLPERF-} != 1 ]] || flags+=("--mlperf_log=$RUN_DIR/mlperf.txt")
flags+=("${rate[@]}" "--run_dir=$RUN_DIR" "--checkpoint_dir=$RUN_DIR/checkpoints" "${more[@]}")

if [[ -n ${SLURM_STEP_ID-} ]]; then
  exec ./hvd_wrapper.sh python3 -m launch.srun main.py "${flags[@]}"
fi
exec python3 -m launch -np "$DGXNGPU" -- main.py "${flags[@]}"
