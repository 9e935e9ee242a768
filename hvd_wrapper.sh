#!/usr/bin/env bash
# Starts one rank: gives it its GPU and its share of this machine's cores, then becomes it.
#
#   horovodrun -np 8 ./hvd_wrapper.sh python3 main.py --xla ...
#
# Works under horovodrun, Open MPI, MVAPICH2, MPICH/Hydra/PMI and Slurm's srun; without a
# launcher it starts one rank alone.
#
# Sets, unless already set:
#   CUDA_VISIBLE_DEVICES      the local rank (set to nothing counts as set: no GPU)
#   OMP_NUM_THREADS           the cores of this rank
#   TF_NUM_INTRAOP_THREADS    the cores of this rank
#   TF_NUM_INTEROP_THREADS    2
#   GLIBC_TUNABLES            glibc.malloc.hugetlb=1: tables in huge pages, whose addresses the
#                             processor finds sooner; lookups on CPUs gain a third
# Reads:
#   DLRM_CPU_BIND=none        leaves the CPU set alone; threads are still divided
#                             (default: cores, each rank on its own)
set -euo pipefail

fail() {
  echo "hvd_wrapper.sh: $1" >&2
  exit 1
}

# Prints the ranks on this node of a Slurm step: "8(x2),4" is 8 on nodes 0 and 1, 4 on node 2.
slurm_local_size() {
  local node=${SLURM_NODEID:-0} group repeat
  local IFS=,
  for group in ${SLURM_STEP_TASKS_PER_NODE-}; do
    repeat=1
    if [[ $group =~ \(x([0-9]+)\)$ ]]; then
      repeat=${BASH_REMATCH[1]}
    fi
    if ((node < repeat)); then
      echo "${group%%(*}"
      return
    fi
    node=$((node - repeat))
  done
  # What the job asked for; the step may have fewer, so it comes second.
  echo "${SLURM_NTASKS_PER_NODE-}"
}

# Sets local_rank, local_size and launcher. horovodrun and mpirun come before Slurm: inside
# an allocation Slurm's variables are there as well, but describe the batch script.
find_local_rank() {
  local rank_name size_name
  while read -r launcher rank_name size_name; do
    if [[ -n ${!rank_name-} ]]; then
      local_rank=${!rank_name}
      local_size=${!size_name-}
      break
    fi
  done <<'NAMES'
horovodrun HOROVOD_LOCAL_RANK HOROVOD_LOCAL_SIZE
mpirun OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE
mpirun MV2_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_LOCAL_SIZE
mpiexec MPI_LOCALRANKID MPI_LOCALNRANKS
mpiexec PMI_LOCAL_RANK PMI_LOCAL_SIZE
NAMES
  if [[ -z $local_rank && -n ${SLURM_LOCALID-} ]]; then
    launcher=srun
    local_rank=$SLURM_LOCALID
    local_size=$(slurm_local_size)
  fi
  if [[ -z $local_rank ]]; then
    local name
    for name in HOROVOD_RANK OMPI_COMM_WORLD_RANK MV2_COMM_WORLD_RANK PMIX_RANK PMI_RANK \
      SLURM_PROCID; do
      if [[ -n ${!name-} ]]; then
        fail "expected the launcher to name the rank on this machine, found $name=${!name} alone; set HOROVOD_LOCAL_RANK and HOROVOD_LOCAL_SIZE for each rank"
      fi
    done
    launcher=none local_rank=0 local_size=1
  fi
  if ! [[ $local_rank =~ ^[0-9]+$ && $local_size =~ ^[0-9]+$ ]] ||
    ((10#$local_rank >= 10#$local_size)); then
    fail "expected 0 <= local rank < local size from $launcher, found local rank '$local_rank' and local size '$local_size'; set HOROVOD_LOCAL_RANK and HOROVOD_LOCAL_SIZE for each rank"
  fi
  local_rank=$((10#$local_rank)) local_size=$((10#$local_size))
}

choose_gpu() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    return
  fi
  local listing gpus
  if command -v nvidia-smi >/dev/null && listing=$(nvidia-smi -L 2>/dev/null); then
    gpus=$(grep -c '^GPU ' <<<"$listing" || true)
    if ((gpus > 0 && local_size > gpus)); then
      fail "expected a GPU for each of the $local_size ranks on this machine, found $gpus in nvidia-smi -L; start at most $gpus ranks here, or set CUDA_VISIBLE_DEVICES (empty: train on the CPU)"
    fi
  fi
  export CUDA_VISIBLE_DEVICES=$local_rank
}

# Prints the cores that process $1 may run on, in the kernel's form "0-3,8": its affinity
# mask, which a cpuset cgroup narrows too.
allowed_cores() {
  local name value
  while IFS=: read -r name value; do
    if [[ $name == Cpus_allowed_list ]]; then
      echo "${value//[[:space:]]/}"
      return
    fi
  done 2>/dev/null <"/proc/$1/status" || true
}

# Prints the cores of a list such as "0-3,8", one word each, in its order.
expand_cores() {
  local range IFS=,
  for range in $1; do
    seq "${range%-*}" "${range#*-}"
  done
}

# Whether the launcher has bound this rank to the cores $1, so that they are no longer to be
# divided; mpirun does so by default. The mask is then narrower than that of the launcher's
# own process ($2). Under Slurm it is narrower in any case, but Slurm says whether it bound.
is_bound() {
  case $launcher in
    none) return 1 ;;
    srun) [[ -n ${SLURM_CPU_BIND_TYPE-} && $SLURM_CPU_BIND_TYPE != none ]] ;;
    *) [[ -n $2 && $1 != "$2" ]] ;;
  esac
}

# Sets cores, the ones of this rank, and threads, how many it should run. Each local rank
# gets a contiguous piece of the core list, the first ranks one more if it does not divide;
# more ranks than cores take turns. The list follows the kernel's numbering, in which the
# cores of one socket are usually neighbours, so that a rank seldom spans two sockets.
divide_cores() {
  local allowed parents start
  allowed=$(allowed_cores self)
  parents=$(allowed_cores "$PPID")
  mapfile -t cores < <(expand_cores "${allowed:-0-$(($(getconf _NPROCESSORS_ONLN) - 1))}")
  local total=${#cores[@]}
  if is_bound "$allowed" "$parents"; then
    # Ranks bound to a socket share its cores, so their number does not tell the threads.
    local -a machine
    mapfile -t machine < <(expand_cores "${parents:-$allowed}")
    threads=$((${#machine[@]} / local_size))
    threads=$((threads < 1 ? 1 : threads > total ? total : threads))
    return
  fi
  if ((local_size > total)); then
    start=$((local_rank % total)) threads=1
  else
    local rest=$((total % local_size))
    threads=$((total / local_size + (local_rank < rest ? 1 : 0)))
    start=$((local_rank * (total / local_size) + (local_rank < rest ? local_rank : rest)))
  fi
  cores=("${cores[@]:start:threads}")
}

set_threads() {
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
  export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$threads}
  # Two, also on one core: communication waits on one while the other computes.
  export TF_NUM_INTEROP_THREADS=${TF_NUM_INTEROP_THREADS:-2}
}

set_memory() {
  export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
}

bind_to_cores() {
  case ${DLRM_CPU_BIND:-cores} in
    none) return ;;
    cores) ;;
    *) fail "expected DLRM_CPU_BIND to be cores or none, found '$DLRM_CPU_BIND'; unset it or set one of these" ;;
  esac
  if command -v taskset >/dev/null; then
    local IFS=,
    taskset -cp "${cores[*]}" $$ >/dev/null 2>&1 ||
      echo "hvd_wrapper.sh: could not bind to cores ${cores[*]}; only threads are divided" >&2
  fi
}

main() {
  if (($# == 0)); then
    echo "usage: horovodrun -np RANKS ./hvd_wrapper.sh COMMAND [ARGUMENT...]" >&2
    exit 2
  fi
  find_local_rank
  choose_gpu
  divide_cores
  set_threads
  set_memory
  bind_to_cores
  exec "$@"
}

launcher='' local_rank='' local_size='' threads=1
cores=()
# Sourced, it only defines its functions.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
