#!/usr/bin/env bash
# Trains in containers on this host, each time in one of its own.
#
#   CONT=dlrm:sok DATADIR=... LOGDIR=... DGXSYSTEM=DGXA100 launch/docker/run_with_docker.sh
#
# Reads:
#   CONT           the image (launch/docker/Dockerfile)
#   DATADIR        the folder of the data, mounted read-only under the same path (none: FLAGS say
#                  where the data is from)
#   DGXSYSTEM      the system: its settings are in launch/slurm/config_$DGXSYSTEM.sh
#   LOGDIR         the folder of the logs and checkpoints (default ./results)
#   NEXP           how often to train (default 1), each time with its own seed
#   SEED           seed of the first time, of the others one more each (default: drawn at random)
#   CLEAR_CACHES   1 empties the host's page cache before each training (default 1)
#   MLPERF         1 writes MLPerf's log to mlperf.txt in the folder of each training; the image
#                  needs --build-arg REQUIREMENTS=requirements/operate.txt
#   RUN_ID         the name of the results (default: the time); that of an earlier call goes on
#                  with what it has left
#   FLAGS          more flags of main.py
#   DOCKER_FLAGS   more options of `docker run`
#
# SIGTERM or Ctrl-C has the training write a checkpoint; this script then ends with code 75.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PREEMPTED=75

# Prints the settings file of a system; a DGX-2H has those of a DGX-2.
config_of() {
  local path known=()
  for path in "$root"/launch/slurm/config_{"$1","${1%H}"}.sh; do
    if [ -f "$path" ]; then
      echo "$path"
      return
    fi
  done
  for path in "$root"/launch/slurm/config_*.sh; do
    path=${path##*/config_}
    known+=("${path%.sh}")
  done
  fail "DGXSYSTEM: expected one of ${known[*]}, found '$1'"
}

# Prints the names of the variables that a settings file exports.
exported_by() {
  # shellcheck disable=SC2016
  env -i bash -c 'source "$1" && compgen -e' bash "$1" | grep -vxE 'PATH|PWD|OLDPWD|SHLVL|_'
}

clear_caches() {
  sync
  if ! { echo 3 >/proc/sys/vm/drop_caches || sudo -n sysctl -q vm.drop_caches=3; } 2>/dev/null; then
    echo "run_with_docker.sh: the page cache is not emptied, which needs root or passwordless sudo; CLEAR_CACHES=0 leaves it out" >&2
    return
  fi
  if [ "${MLPERF-}" = 1 ]; then # a new file: no log of an attempt without a checkpoint
    printf ':::MLLOG {"namespace": "", "time_ms": %s, "event_type": "POINT_IN_TIME", "key": "cache_clear", "value": true, "metadata": {"file": "launch/docker/run_with_docker.sh", "lineno": %s}}\n' \
      "$(date +%s%3N)" $LINENO >"$RUN_DIR/mlperf.txt"
  fi
}

# Prints the seed of a training: the same whenever it goes on.
seed_of() {
  local file=$RUN_DIR/seed seed=${SEED:+$((SEED + $1 - 1))}
  if [ ! -s "$file" ]; then
    echo "${seed:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}" >"$file"
  fi
  cat "$file"
}

# Trains once; the output goes to the console and to a log. Returns main.py's exit code.
train() {
  local name=dlrm_${RUN_ID}_$1 log=$LOGDIR/${RUN_ID}_$1.log code=0 seed client
  seed=$(seed_of "$1")
  # The client does not pass signals on: Ctrl-C would reach the training twice.
  SEED=$seed docker run --rm --init --name "$name" --sig-proxy=false "${options[@]}" "$CONT" \
    /dlrm/launch/run_and_time.sh > >(exec tee -ai "$log") 2>&1 &
  client=$!
  # shellcheck disable=SC2064
  trap "docker kill --signal=TERM $name >/dev/null" TERM INT
  # A signal ends `wait` early.
  while kill -0 "$client" 2>/dev/null; do
    wait "$client" || true
  done
  wait "$client" || code=$?
  trap - TERM INT
  return "$code"
}

[ -n "${CONT-}" ] || fail "expected CONT, the name of an image, found none; build one: docker build -f launch/docker/Dockerfile -t dlrm ."
[ -z "${DATADIR-}" ] || [ -d "$DATADIR" ] || fail "DATADIR: expected a folder with data, found '$DATADIR'"
[ -n "${DGXSYSTEM-}" ] || fail "expected DGXSYSTEM, the name of a system, found none; set DGXSYSTEM=DGXA100, or another launch/slurm/config_*.sh"
config=$(config_of "$DGXSYSTEM")
docker version >/dev/null 2>&1 || fail "expected a Docker daemon that $(id -un) may use, found none; see: docker version"
# shellcheck source=launch/slurm/config_DGXA100.sh
source "$config"
# All ranks of the system are on this host; if it has too few GPUs for them, hvd_wrapper.sh says so.
export DGXNGPU=$((DGXNNODES * DGXNGPU))

mkdir -p "${LOGDIR:=./results}"
LOGDIR=$(realpath "$LOGDIR")
NEXP=${NEXP:-1} RUN_ID=${RUN_ID:-$(date +%y%m%d%H%M%S)}

options=(
  --network=host --ipc=host
  # What the training writes belongs to the caller, who need not exist in the image.
  --user="$(id -u):$(id -g)" --env=HOME=/var/tmp
  --mount="type=bind,source=$LOGDIR,target=$LOGDIR"
)
if [ -n "${DATADIR-}" ]; then
  DATADIR=$(realpath "$DATADIR")
  options+=(--mount="type=bind,source=$DATADIR,target=$DATADIR,readonly")
fi
export DATADIR
# A variable that is named without a value has this script's, or none.
for name in $(exported_by "$config") DATADIR RUN_DIR SEED MLPERF FLAGS; do
  options+=(--env="$name")
done
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  options+=(--gpus=all)
fi
if [ -e /dev/infiniband ]; then # its memory must be locked
  options+=(--device=/dev/infiniband --ulimit=memlock=-1)
fi
# shellcheck disable=SC2206
options+=(${DOCKER_FLAGS-})

for ((trial = 1; trial <= NEXP; trial++)); do
  export RUN_DIR=$LOGDIR/${RUN_ID}_$trial
  mkdir -p "$RUN_DIR"
  if [ -e "$RUN_DIR/finished" ]; then
    echo "run_with_docker.sh: training $trial of $NEXP was finished before"
    continue
  fi
  [ "${CLEAR_CACHES:-1}" != 1 ] || [ -e "$RUN_DIR/checkpoints" ] || clear_caches
  code=0
  train "$trial" || code=$?
  if ((code == PREEMPTED)); then
    echo "run_with_docker.sh: a signal stopped training $trial of $NEXP after a checkpoint; RUN_ID=$RUN_ID and the same command go on with it" >&2
  fi
  ((code == 0)) || exit "$code"
  touch "$RUN_DIR/finished"
done
