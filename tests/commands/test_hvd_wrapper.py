"""The real script, started as each launcher would start it, reports from what it became."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrm.formats.zip_strict import zip_strict
from tests.support.processes import without_modules

# Bash and processes without TensorFlow: the same in both profiles.
pytestmark = pytest.mark.one_profile
WRAPPER = Path(__file__).resolve().parents[2] / "hvd_wrapper.sh"
NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "GLIBC_TUNABLES",
)
REPORT = f"""
import json, os, sys
print(json.dumps({{
    "env": {{name: os.environ.get(name) for name in {NAMES}}},
    "cores": sorted(os.sched_getaffinity(0)),
    "pid": os.getpid(),
    "args": sys.argv[1:],
}}))
"""
LAUNCHER = re.compile(r"HOROVOD_|OMPI_|PMIX?_|MPI_|MV2_|SLURM_|DLRM_|CUDA_|OMP_|TF_|GLIBC_")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOWED = sorted(os.sched_getaffinity(0))


def clean_env(path: str | None = None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not LAUNCHER.match(name)}
    return env if path is None else {**env, "PATH": path}


def run(*command: str, path: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Starts the wrapper with the variables of a launcher."""
    return subprocess.run(
        [str(WRAPPER), *command],
        env={**clean_env(path), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def report(*args: str, path: str | None = None, **env: str) -> dict[str, Any]:
    done = run(sys.executable, "-c", REPORT, *args, path=path, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def share(rank: int, size: int) -> list[int]:
    """This rank's cores, from the definition: consecutive, as equal as can be, big ones first."""
    if size > len(ALLOWED):
        return [ALLOWED[rank % len(ALLOWED)]]
    sizes = [len(range(r, len(ALLOWED), size)) for r in range(size)]
    return ALLOWED[sum(sizes[:rank]) : sum(sizes[: rank + 1])]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "launcher",
    [
        {"HOROVOD_LOCAL_RANK": "{}", "HOROVOD_LOCAL_SIZE": "2", "HOROVOD_RANK": "7"},
        {"OMPI_COMM_WORLD_LOCAL_RANK": "{}", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"MV2_COMM_WORLD_LOCAL_RANK": "{}", "MV2_COMM_WORLD_LOCAL_SIZE": "2"},
        {"MPI_LOCALRANKID": "{}", "MPI_LOCALNRANKS": "2", "PMI_RANK": "5"},
        {"PMI_LOCAL_RANK": "{}", "PMI_LOCAL_SIZE": "2", "PMI_RANK": "5"},
        {"SLURM_LOCALID": "{}", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "9"},
        {"SLURM_LOCALID": "{}", "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_NODEID": "2"},
        {"SLURM_LOCALID": "{}", "SLURM_STEP_TASKS_PER_NODE": "1(x2),1,2", "SLURM_NODEID": "3"},
        {"SLURM_LOCALID": "{}", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NTASKS_PER_NODE": "8"},
    ],
    ids=lambda launcher: "+".join(name.split("_")[0] + name[-5:] for name in launcher),
)
def test_rank_gets_its_gpu_threads_and_cores(launcher: dict[str, str], rank: int) -> None:
    got = report(**{name: value.format(rank) for name, value in launcher.items()})

    expected = share(rank, 2)
    assert got["cores"] == expected
    assert got["env"] == {
        "CUDA_VISIBLE_DEVICES": str(rank),
        "OMP_NUM_THREADS": str(len(expected)),
        "TF_NUM_INTRAOP_THREADS": str(len(expected)),
        "TF_NUM_INTEROP_THREADS": "2",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def test_without_launcher_one_rank_has_everything() -> None:
    got = report()
    assert got["cores"] == ALLOWED
    assert got["env"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert got["env"]["TF_NUM_INTRAOP_THREADS"] == str(len(ALLOWED))


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(),
    reason=f"this kernel gives no huge pages ({HUGE_PAGES})",
)
@pytest.mark.skipif(
    tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35), reason="glibc before 2.35"
)
def test_large_memory_lies_in_huge_pages() -> None:
    script = "memory = bytearray(64 << 20); print(open('/proc/self/smaps_rollup').read())"
    report = run(sys.executable, "-c", script).stdout
    found = re.search(r"AnonHugePages: +(\d+) kB", report)
    assert found
    assert int(found[1]) > 50 << 10


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_ranks_share_all_cores_whatever_their_number(size: int) -> None:
    cores = [
        report(HOROVOD_LOCAL_RANK=str(rank), HOROVOD_LOCAL_SIZE=str(size))["cores"]
        for rank in range(size)
    ]
    assert cores == [share(rank, size) for rank in range(size)]
    assert sorted({core for one in cores for core in one}) == ALLOWED


@pytest.mark.parametrize("size", range(1, 14))
def test_division_of_a_machine_larger_than_this_one(size: int) -> None:
    machine = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 20]
    script = f"""
        source {WRAPPER}
        allowed_cores() {{ echo 0-3,8-13,20; }}
        launcher=horovodrun local_size={size}
        for ((local_rank = 0; local_rank < local_size; local_rank++)); do
          divide_cores
          echo "$threads:${{cores[*]}}"
        done
    """
    lines = subprocess.check_output(["bash", "-c", script], text=True).splitlines()
    threads = [int(line.partition(":")[0]) for line in lines]
    cores = [[int(core) for core in line.partition(":")[2].split()] for line in lines]

    assert threads == [len(one) for one in cores]
    if size <= len(machine):
        assert [core for one in cores for core in one] == machine
        assert max(threads) - min(threads) <= 1
    else:
        assert cores == [[machine[rank % len(machine)]] for rank in range(size)]


def test_horovodrun_inside_a_slurm_batch_script_counts_before_slurm() -> None:
    slurm = {"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    got = report(HOROVOD_LOCAL_RANK="1", HOROVOD_LOCAL_SIZE="2", **slurm)
    assert got["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert got["cores"] == share(1, 2)


def test_only_the_cores_of_the_launcher_are_divided() -> None:
    core = ALLOWED[-1]
    done = subprocess.run(
        # The echo keeps this shell alive as the parent, with the same narrow mask.
        ["taskset", "-c", str(core), "sh", "-c", '"$@"; echo done', "sh"]
        + [str(WRAPPER), sys.executable, "-c", REPORT],
        env={**clean_env(), "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(done.stdout.splitlines()[0])["cores"] == [core]


def test_under_slurm_a_bound_rank_keeps_its_cores() -> None:
    slurm = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}
    assert report(SLURM_CPU_BIND_TYPE="mask_cpu:", **slurm)["cores"] == ALLOWED
    assert report(SLURM_CPU_BIND_TYPE="none", **slurm)["cores"] == share(0, 2)


@pytest.mark.parametrize(
    ("own", "launchers", "size", "threads", "cores"),
    [
        ("4-5", "0-15", 2, 2, "4 5"),  # bound to cores: all of them
        ("8-15", "0-15", 8, 2, "8 9 10 11 12 13 14 15"),  # eight ranks, four on each socket
        ("3", "0-3", 8, 1, "3"),
        ("0-7", "0-7", 2, 4, "4 5 6 7"),  # not bound: divided
    ],
)
def test_a_rank_that_mpirun_bound_keeps_its_cores(
    own: str, launchers: str, size: int, threads: int, cores: str
) -> None:
    script = f"""
        source {WRAPPER}
        allowed_cores() {{ if [[ $1 == self ]]; then echo {own}; else echo {launchers}; fi; }}
        launcher=mpirun local_rank=1 local_size={size}
        divide_cores
        echo "$threads:${{cores[*]}}"
    """
    output = subprocess.check_output(["bash", "-c", script], text=True)
    assert output == f"{threads}:{cores}\n"


def test_what_the_user_set_stays() -> None:
    mine = dict(zip_strict(NAMES, ("3", "5", "6", "7", "glibc.malloc.arena_max=2")))
    assert report(HOROVOD_LOCAL_RANK="1", HOROVOD_LOCAL_SIZE="2", **mine)["env"] == mine
    assert report(CUDA_VISIBLE_DEVICES="")["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_binding_can_be_switched_off() -> None:
    horovod = {"HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    got = report(DLRM_CPU_BIND="none", **horovod)
    assert got["cores"] == ALLOWED
    assert got["env"]["OMP_NUM_THREADS"] == str(len(share(1, 2)))

    done = run("true", DLRM_CPU_BIND="nein", **horovod)
    assert done.returncode == 1
    assert "DLRM_CPU_BIND" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with just the commands that the script needs, to use as PATH."""
    for name in ("bash", "env", "seq", "grep", "taskset", "getconf"):
        found = shutil.which(name)
        assert found, name
        (tmp_path / name).symlink_to(found)
    return tmp_path


def test_without_taskset_only_threads_are_divided(tools: Path) -> None:
    (tools / "taskset").unlink()
    got = report(path=str(tools), HOROVOD_LOCAL_RANK="1", HOROVOD_LOCAL_SIZE="2")
    assert got["cores"] == ALLOWED
    assert got["env"]["OMP_NUM_THREADS"] == str(len(share(1, 2)))


def test_fewer_gpus_than_ranks(tools: Path) -> None:
    smi = tools / "nvidia-smi"
    smi.write_text(
        "#!/bin/bash\n"
        "echo 'GPU 0: NVIDIA A100 (UUID: GPU-0)'\n"
        "echo '  MIG 1g.10gb Device 0: (UUID: MIG-0)'\n"
        "echo 'GPU 1: NVIDIA A100 (UUID: GPU-1)'\n"
    )
    smi.chmod(0o755)
    three = {"HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "3"}

    done = run("true", path=str(tools), **three)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for part in ("3 ranks", "found 2", "start at most 2", "CUDA_VISIBLE_DEVICES"):
        assert part in done.stderr

    two = {"HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    assert report(path=str(tools), **two)["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert report(path=str(tools), CUDA_VISIBLE_DEVICES="", **three)
    smi.write_text("#!/bin/bash\necho 'driver not loaded'\nexit 9\n")
    assert report(path=str(tools), **three)["env"]["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"HOROVOD_RANK": "3"}, "HOROVOD_RANK=3"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK=0"),
        ({"MV2_COMM_WORLD_RANK": "0"}, "MV2_COMM_WORLD_RANK=0"),
        ({"PMI_RANK": "1"}, "PMI_RANK=1"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
        ({"HOROVOD_LOCAL_RANK": "2", "HOROVOD_LOCAL_SIZE": "2"}, "'2'"),
        ({"HOROVOD_LOCAL_RANK": "one", "HOROVOD_LOCAL_SIZE": "2"}, "'one'"),
        ({"HOROVOD_LOCAL_RANK": "1"}, "local size ''"),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "1"}, "srun"),
    ],
)
def test_a_launcher_that_does_not_say_enough_is_refused(env: dict[str, str], named: str) -> None:
    done = run("true", **env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert "HOROVOD_LOCAL_RANK" in done.stderr


def test_the_command_takes_the_place_of_the_script() -> None:
    command = [str(WRAPPER), sys.executable, "-c", REPORT, "two words", "", "*", "--flag=a b"]
    with subprocess.Popen(command, env=clean_env(), stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=30)
    got = json.loads(output)
    assert got["pid"] == process.pid
    assert got["args"] == ["two words", "", "*", "--flag=a b"]


def test_exit_code_is_the_commands() -> None:
    assert run(sys.executable, "-c", "raise SystemExit(37)").returncode == 37
    assert run("/nonexistent/command").returncode == 127


@pytest.mark.parametrize("controller", [["--gloo"], []])
def test_horovodrun_starts_ranks_without_loading_tensorflow(
    controller: list[str], tmp_path: Path
) -> None:
    launcher = Path(sys.executable).with_name("horovodrun")
    ended = subprocess.run(
        [launcher, *controller, "-np", "2", "echo", "started"],
        env={**os.environ, **without_modules(tmp_path, "tensorflow")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("started") == 2


def test_usage() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", str(WRAPPER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
