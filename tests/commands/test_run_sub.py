"""What run.sub asks of Slurm and of the training, seen by stand-ins for srun and scontrol.

Slurm itself runs it in test_slurm.py; here are the cases that need no cluster, or, for containers,
a plugin that cannot be had.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, Ended, run

# Bash and processes without TensorFlow: the same in both profiles.
pytestmark = pytest.mark.one_profile
SCRIPT = "launch/slurm/run.sub"

# Notes how it was called, and ends with the next of the exit codes that the test has planned.
STAND_IN = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
name = os.path.basename(sys.argv[0])
plan = folder / (name + ".codes")
codes = plan.read_text().split() if plan.exists() else []
plan.write_text(" ".join(codes[1:]))
chosen = ("SEED", "RUN_DIR", "DATADIR", "FLAGS", "SLURM_STEP_ID")
call = [name, sys.argv[1:], {{key: os.environ.get(key) for key in chosen}}]
with open(folder / "calls", "a") as calls:
    print(json.dumps(call), file=calls)
sys.exit(int(codes[0]) if codes else 0)
"""


class Job:
    """A job of two nodes whose commands are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in ("srun", "scontrol"):
            stand_in(self._bin / name, folder)

    def start(self, *, codes: str = "", scontrol_codes: str = "", **variables: str) -> Ended:
        """Runs the script; srun ends with each of the codes in turn."""
        (self.folder / "srun.codes").write_text(codes)
        (self.folder / "scontrol.codes").write_text(scontrol_codes)
        return run(
            ["env", f"PATH={self._bin}:/usr/bin:/bin", "bash", SCRIPT],
            time_limit=30,
            env={
                "SLURM_JOB_ID": "71",
                "SLURM_JOB_NUM_NODES": "2",
                "SLURM_JOB_NODELIST": "n[1-2]",
                "SLURM_SUBMIT_DIR": str(ROOT),
                "DGXNGPU": "8",
                "LOGDIR": str(self.folder / "results"),
                "CLEAR_CACHES": "0",
                **variables,
            },
        )

    def calls(self, name: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """The arguments and chosen variables of each call of a stand-in."""
        calls = self.folder / "calls"
        for line in calls.read_text().splitlines() if calls.exists() else []:
            called, arguments, variables = json.loads(line)
            if called == name:
                yield arguments, variables


def stand_in(path: Path, folder: Path) -> None:
    path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_each_training_has_its_ranks_its_folder_and_its_seed(job: Job) -> None:
    ended = job.start(NEXP="3", SEED="40", DATADIR="data")
    assert ended.code == 0, ended.output
    calls = list(job.calls("srun"))
    for trial, (arguments, variables) in enumerate(calls, 1):
        assert {"--ntasks=16", "--ntasks-per-node=8", "--kill-on-bad-exit=0"} <= set(arguments)
        assert f"--output={job.folder}/results/71_{trial}.log" in arguments
        assert arguments[-1] == str(ROOT / "launch" / "run_and_time.sh")
        assert not any("container" in argument for argument in arguments)
        assert variables["SEED"] == str(39 + trial)
        assert variables["RUN_DIR"] == f"{job.folder}/results/71_{trial}"
        assert variables["DATADIR"] == str(ROOT / "data")
    assert len(calls) == 3
    assert "training 3 of 3 is finished" in ended.output
    assert not list(job.calls("scontrol"))


@pytest.mark.parametrize("code", [75, 143])  # with a checkpoint, and before there could be one
def test_a_preempted_job_requeues_itself_and_repeats_no_training(job: Job, code: int) -> None:
    ended = job.start(codes=f"0 {code}", NEXP="3")
    assert ended.code == 75, ended.output
    assert [arguments for arguments, _ in job.calls("scontrol")] == [["requeue", "71"]]
    assert len(list(job.calls("srun"))) == 2

    ended = job.start(NEXP="3", SLURM_RESTART_COUNT="1")
    assert ended.code == 0, ended.output
    assert "training 1 of 3 was finished before" in ended.output
    assert "training 2 of 3, start 2 of job 71" in ended.output
    _, before, after, last = (variables for _, variables in job.calls("srun"))
    assert after == before  # the same folder, and the seed that was drawn for it
    assert before["SEED"].isdigit()
    assert last["SEED"] != after["SEED"]


def test_a_failure_ends_the_job_and_another_job_takes_up_its_results(job: Job) -> None:
    ended = job.start(codes="1", NEXP="2")
    assert ended.code == 1
    assert "error: training 1 of 2 ended with code 1; see " in ended.output
    assert not list(job.calls("scontrol"))

    ended = job.start(SLURM_JOB_ID="85", RUN_ID="71")
    assert ended.code == 0, ended.output
    assert [variables["RUN_DIR"] for _, variables in job.calls("srun")] == [
        f"{job.folder}/results/71_1"
    ] * 2


def test_after_a_failure_it_goes_on_as_long_as_there_are_new_checkpoints(job: Job) -> None:
    checkpoints = job.folder / "results" / "71_1" / "checkpoints"
    for name, code in ((n, c) for n in ("step-9", "step-10") for c in (75, 75, 1)):
        (checkpoints / f"step-{name[5:]:0>10}").mkdir(parents=True, exist_ok=True)
        ended = job.start(codes="137")
        assert ended.code == code, ended.output
        what = f"ended with code 137 after step-{name[5:]:0>10}; back" if code == 75 else "error: "
        assert what in ended.output
    assert len(list(job.calls("scontrol"))) == 4


def test_slurm_may_refuse_to_requeue(job: Job) -> None:
    ended = job.start(codes="75", scontrol_codes="1")
    assert ended.code == 1
    assert (
        "error: Slurm refused to requeue the job; RUN_ID=71 sbatch ... resumes it" in ended.output
    )


def test_a_container_gets_the_image_and_the_folders(job: Job) -> None:
    results = job.folder / "results"
    job.start(CONT="registry#dlrm:1", DATADIR="/data", CLEAR_CACHES="1")
    (clear, _), (train, _) = job.calls("srun")
    assert not any("container" in argument for argument in clear)
    assert "--container-image=registry#dlrm:1" in train
    assert f"--container-mounts=/data:/data,{results}:{results}" in train
    assert train[-1] == "/dlrm/launch/run_and_time.sh"

    job.start(CONT="dlrm.sqsh", MOUNTS="/raid:/data,/scratch:/logs", RUN_ID="2")
    *_, (train, _) = job.calls("srun")
    assert "--container-mounts=/raid:/data,/scratch:/logs" in train


def test_caches_are_cleared_once_on_each_node_before_a_training(job: Job) -> None:
    ended = job.start(CLEAR_CACHES="1", codes="1")  # no right to do so
    assert ended.code == 0
    assert "warning: could not empty the page cache on every node" in ended.output
    (clear, _), _ = job.calls("srun")
    assert {"--ntasks-per-node=1", "--ntasks=2"} <= set(clear)

    (job.folder / "results" / "71_1" / "finished").unlink()
    (job.folder / "results" / "71_1" / "checkpoints").mkdir()
    job.start(CLEAR_CACHES="1")
    assert len(list(job.calls("srun"))) == 3  # a training that resumes is not measured


def test_mlperf_is_told_that_the_caches_were_cleared(job: Job) -> None:
    assert job.start(CLEAR_CACHES="1", MLPERF="1", codes="0 75").code == 75
    log = job.folder / "results" / "71_1" / "mlperf.txt"
    (line,) = log.read_text().splitlines()
    event = json.loads(line.removeprefix(":::MLLOG "))
    assert abs(event.pop("time_ms") / 1000 - time.time()) < 30
    assert event.pop("metadata")["file"] == SCRIPT
    assert event == {
        "namespace": "",
        "event_type": "POINT_IN_TIME",
        "key": "cache_clear",
        "value": True,
    }

    # Not told: caches that could not be cleared.
    job.start(CLEAR_CACHES="1", MLPERF="1", RUN_ID="2", codes="1")
    assert not (job.folder / "results" / "2_1" / "mlperf.txt").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"SLURM_JOB_ID": ""},
            "expected Slurm to start this script, found no SLURM_JOB_ID; submit",
        ),
        ({"DGXNGPU": ""}, "expected DGXNGPU, the ranks on each node, found none; source a config"),
        (
            {"SLURM_SUBMIT_DIR": "/usr"},
            "expected sbatch to run in the project's folder, found /usr",
        ),
    ],
)
def test_what_is_missing_is_one_line(job: Job, variables: dict[str, str], message: str) -> None:
    ended = job.start(**variables)
    assert ended.code == 1
    assert f"run.sub: error: {message}" in ended.output
    assert ended.output.count("\n") == 1
    assert not list(job.calls("srun"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose wrapper and launch only note how they are called."""
    scripts = tmp_path / "project" / "launch"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "run_and_time.sh", scripts)
    stand_in(scripts.parent / "hvd_wrapper.sh", tmp_path)
    programs = scripts.parent / ".venv" / "bin"
    programs.mkdir(parents=True)
    stand_in(programs / "python3", tmp_path)
    return scripts.parent


def trained_with(project: Path, **variables: str) -> list[str]:
    """How the inner script starts the training."""
    calls = project.parent / "calls"
    calls.unlink(missing_ok=True)
    subprocess.run(
        [project / "launch" / "run_and_time.sh"],
        env={"PATH": "/usr/bin:/bin", "RUN_DIR": "out", "DGXNGPU": "8", **variables},
        check=True,
        timeout=30,
    )
    name, arguments, _ = json.loads(calls.read_text())
    return [name, *arguments]


def test_the_inner_script_starts_one_rank_in_a_step_and_else_all(project: Path) -> None:
    flags = [
        *("--flagfile=presets/terabyte.flags", "--data_dir=d", "--seed=3"),
        *("--run_dir=out", "--checkpoint_dir=out/checkpoints"),
    ]
    given = {"DATADIR": "d", "SEED": "3"}
    assert trained_with(project, **given, SLURM_STEP_ID="0") == [
        *("hvd_wrapper.sh", "python3", "-m", "launch.srun", "main.py"),
        *flags,
    ]
    assert trained_with(project, **given) == [
        *("python3", "-m", "launch", "-np", "8", "--", "main.py"),
        *flags,
    ]


def test_own_flags_come_after_those_of_a_configuration(project: Path) -> None:
    mlperf = {"MLPERF": "1", "BATCH_SIZE": "55296", "LR_ARGS": "--lr 24 --warmup_steps 2750"}
    found = trained_with(project, **mlperf, FLAGS="--lr=1 --amp", SLURM_STEP_ID="0")
    assert found[5:] == [
        *("--flagfile=presets/terabyte.flags", "--global_batch_size=55296"),
        *("--mlperf_log=out/mlperf.txt", "--lr", "24", "--warmup_steps", "2750"),
        *("--run_dir=out", "--checkpoint_dir=out/checkpoints", "--lr=1", "--amp"),
    ]


def test_a_preset_comes_first_and_own_flags_may_name_another(project: Path) -> None:
    for preset, own, flagfiles in (
        ("", "", ["presets/terabyte.flags"]),
        ("presets/demo.flags", "--lr=1", ["presets/demo.flags"]),
        ("", "--flagfile=mine", ["mine"]),
        ("presets/demo.flags", "--flagfile=mine", ["presets/demo.flags", "mine"]),
    ):
        found = trained_with(project, PRESET=preset, FLAGS=own, SLURM_STEP_ID="0")[5:]
        assert [flag[11:] for flag in found if flag.startswith("--flagfile=")] == flagfiles
        assert found.index("--run_dir=out") == (1 if preset or not own else 0)


@pytest.mark.parametrize("missing", ["RUN_DIR", "DGXNGPU"])
def test_what_the_inner_script_needs_is_one_line(project: Path, missing: str) -> None:
    given = {"PATH": "/usr/bin:/bin", "RUN_DIR": "out", "DGXNGPU": "8", missing: ""}
    done = subprocess.run(
        [project / "launch" / "run_and_time.sh"],
        env=given,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: expected {missing}, ")
    assert done.stderr.count("\n") == 1
    assert not (project.parent / "calls").exists()


def test_the_last_configuration_that_is_sourced_counts() -> None:
    systems = {"DGX2": ("16", ".venv-sok"), "DGXA100": ("8", ".venv-sok"), "demo": ("1", ".venv")}
    for system, (ranks, environment) in systems.items():
        before = "".join(f"source launch/slurm/config_{other}.sh\n" for other in systems)
        script = f"set -eu\nFLAGS=--lr=1\n{before}source launch/slurm/config_{system}.sh\nenv -0"
        output = subprocess.check_output(
            ["bash", "-c", script], cwd=ROOT, text=True, env={"PATH": "/usr/bin:/bin", "FLAGS": ""}
        )
        variables = dict(line.split("=", 1) for line in output.split("\0") if "=" in line)
        assert (ROOT / variables["PRESET"]).is_file()
        assert Path(variables["PRESET"]).stem == system.lower()
        assert variables["FLAGS"] == "--lr=1"  # the user's alone
        assert variables["DGXSYSTEM"] == system
        assert (variables["DGXNGPU"], variables["VENV"]) == (ranks, environment)
        assert variables["SBATCH_TIMELIMIT"] == variables["WALLTIME"]
        assert variables.get("SBATCH_GPUS_PER_NODE") == (None if system == "demo" else ranks)
