#!/usr/bin/env bash
# Starts one rank: assigns its GPU and its share of this machine's cores, then runs the command.
#
#   horovodrun -np 8 ./hvd_wrapper.sh python3 main.py --xla ...
#
# Works with horovodrun, Open MPI, MVAPICH2, MPICH/Hydra/PMI and Slurm's srun; without a
# launcher it starts a single rank.
#
# Sets, unless already set:
#   CUDA_VISIBLE_DEVICES      the local rank (an empty value is kept: no GPU)
#   OMP_NUM_THREADS           the number of this rank's cores
#   TF_NUM_INTRAOP_THREADS    the number of this rank's cores
#   TF_NUM_INTEROP_THREADS    2
#   GLIBC_TUNABLES            glibc.malloc.hugetlb=1: tables in huge pages, which cause fewer TLB
#                             misses and make lookups on CPUs a third faster
# Reads:
#   DLRM_CPU_BIND=none        does not bind to cores, but still divides the threads
#                             (default: cores, which binds each rank to its own)
set -euo pipefail

fail() {
  echo "hvd_wrapper.sh: $1" >&2
  exit 1
}

# Prints how many ranks of a Slurm step run on this node: "8(x2),4" means 8 on nodes 0 and 1, 4 on
# node 2.
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
  # The number that the job asked for. The step may have fewer, so this is only the fallback.
  echo "${SLURM_NTASKS_PER_NODE-}"
}

# Sets local_rank, local_size and launcher. horovodrun and mpirun come before Slurm, because inside
# an allocation Slurm's variables are set as well, but describe the batch script.
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

# Prints the cores that process $1 may run on, in the kernel's notation "0-3,8": its affinity
# mask, which also reflects its cpuset cgroup.
allowed_cores() {
  local name value
  while IFS=: read -r name value; do
    if [[ $name == Cpus_allowed_list ]]; then
      echo "${value//[[:space:]]/}"
      return
    fi
  done 2>/dev/null <"/proc/$1/status" || true
}

# Prints the cores of a list such as "0-3,8", one per line, in the order of the list.
expand_cores() {
  local range IFS=,
  for range in $1; do
    seq "${range%-*}" "${range#*-}"
  done
}

# Succeeds if the launcher has already bound this rank to the cores $1, as mpirun does by default;
# they must not be divided again. The mask is then narrower than $2, that of the launcher's own
# process. Under Slurm it is always narrower, but a variable says whether ranks were bound.
is_bound() {
  case $launcher in
    none) return 1 ;;
    srun) [[ -n ${SLURM_CPU_BIND_TYPE-} && $SLURM_CPU_BIND_TYPE != none ]] ;;
    *) [[ -n $2 && $1 != "$2" ]] ;;
  esac
}

# Sets cores to those of this rank, and threads to how many it should run. Each local rank gets a
# contiguous part of the core list; if it does not divide evenly, the first ranks get one more. More
# ranks than cores share them in turn. The list follows the kernel's numbering, in which the cores
# of a socket are usually neighbours, so a rank rarely spans two sockets.
divide_cores() {
  local allowed parents start
  allowed=$(allowed_cores self)
  parents=$(allowed_cores "$PPID")
  mapfile -t cores < <(expand_cores "${allowed:-0-$(($(getconf _NPROCESSORS_ONLN) - 1))}")
  local total=${#cores[@]}
  if is_bound "$allowed" "$parents"; then
    # Ranks that are bound to a socket share its cores, so these do not give the number of threads.
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
  # Two even on one core: one thread waits for communication while the other computes.
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
      echo "hvd_wrapper.sh: could not bind to cores ${cores[*]}; only the threads are divided" >&2
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
# When it is sourced, it only defines its functions.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
