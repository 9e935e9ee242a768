"""Faults of checkpoints and data: truncated, full disk, damaged, another run's, not finite.

Each function tries one fault once, and says what it found.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from dlrm.checkpoint.directory import checkpoint_name
from dlrm.checkpoint.manifest import FILE_NAME
from tests.faults.trials import Trial, expect, expect_error
from tests.support import jobs
from tests.support.jobs import CHECKPOINT_INTERVAL, STEPS
from tests.support.processes import run


def killed_at_save_points(trial: Trial, moments: int = 20) -> str:
    """The old or the new checkpoint loads, never a mix; the next run leaves nothing else."""
    numbers = [str(number) for number in (trial.ranks, moments, trial.random.random())]
    worker = ["python3", "-m", "tests.faults.workers.killed_saves"]
    ended = run([*worker, trial.folder, *numbers], time_limit=jobs.TIME_LIMIT)
    assert ended.code == 0, ended.output
    found = [json.loads(line) for line in ended.output.splitlines() if line.startswith("{")]
    problems = [one for one in found if "problem" in one]
    assert not problems, f"{problems}\n{ended.output}"
    named = [one["point"] for one in found if "point" in one]
    assert all(one["killed"] for one in found[: len(named)]), found
    newest = [one["newest"] for one in found]
    return (
        f"kill -9 at {len(named)} named points and {moments} moments of a save: "
        f"{newest.count('old')} old, {newest.count('new')} new, no mix"
    )


def disk_full(trial: Trial) -> str:
    """The error names file and cause, and the checkpoint before it stays whole."""
    step = trial.random.randrange(CHECKPOINT_INTERVAL, STEPS, CHECKPOINT_INTERVAL)
    before = trial.baseline.copy(trial.ranks, step, trial.folder / "before")
    if not may_mount(trial.folder):
        return file_too_large(trial, step)
    size = sum(path.stat().st_size for path in before.iterdir())
    room = int(size * trial.random.uniform(1.05, 1.95))
    line = in_small_file_system(trial, room, ":", "No space left on device")
    assert jobs.whole(trial.folder / "after") == [step], "the checkpoint before is not left"
    return f"room for {room / size:.2f} checkpoints: {line}"


def file_too_large(trial: Trial, step: int) -> str:
    """As when the disk is full, by a limit on the size of a file."""
    checkpoint = trial.baseline.copy(trial.ranks, step, trial.checkpoints)
    largest = max(path.stat().st_size for path in checkpoint.iterdir())
    blocks = int(largest * trial.random.uniform(0.2, 0.9)) // 512
    with trial.start(around=("sh", "-c", 'ulimit -f "$0" && exec "$@"', str(blocks))) as job:
        ended = job.end()
    assert ended.code != 0, ended.output
    line = expect_unwritten(trial, ended.output, "File too large")
    assert jobs.whole(trial.checkpoints) == [step], "the checkpoint before is not left"
    return f"no file above {512 * blocks} of {largest} bytes: {line}"


def read_only(trial: Trial) -> str:
    """The same where the file system becomes read-only under the run."""
    if not may_mount(trial.folder):
        return "not tried: no file system may be mounted here"
    before = trial.baseline.copy(trial.ranks, CHECKPOINT_INTERVAL, trial.folder / "before")
    step = trial.random.randrange(2 * CHECKPOINT_INTERVAL, STEPS - 25, CHECKPOINT_INTERVAL)
    # A mount on top of the first: the run's lock keeps a file of that one open for writing.
    change = (
        f'until [ -e "$1/{checkpoint_name(step)}" ]; do sleep 0.01; done; '
        f"sleep {trial.random.uniform(0, 0.1)}; "
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    )
    room = 10 * sum(path.stat().st_size for path in before.iterdir())
    line = in_small_file_system(trial, room, change, "Read-only file system")
    left = jobs.whole(trial.folder / "after")
    assert left[-1] >= step, left
    return f"read-only after step {left[-1]}: {line}"


def in_small_file_system(trial: Trial, room: int, change: str, cause: str) -> str:
    """Trains with checkpoints in a separate file system, filled from `before`, kept as `after`.

    Args:
        trial: The trial.
        room: Size of the file system in bytes.
        change: A shell command to run during the training, with the folder as $1.
        cause: The text that the error line must contain.

    Returns:
        The cause, and the file that the error line names.
    """
    before, after = trial.folder / "before", trial.folder / "after"
    trial.checkpoints.mkdir()
    script = (
        'mount -t tmpfs -o size="$0" tmpfs "$1" && cp -a "$2/." "$1" || exit 99\n'
        f"{{ {change}; }} &\n"
        'folder=$1 after=$3; shift 3; "$@"; code=$?\n'
        'kill $! 2>/dev/null; cp -a "$folder" "$after"; exit $code'
    )
    folders = map(os.fspath, (trial.checkpoints, before, after))
    around = ("unshare", "-rm", "sh", "-c", script, str(room), *folders)
    with trial.start(around=around) as job:
        ended = job.end()
    assert ended.code not in (0, 99), ended.output
    return expect_unwritten(trial, ended.output, cause)


def expect_unwritten(trial: Trial, output: str, cause: str) -> str:
    """Expects an error line with cause and file, and gives both."""
    line = expect_error(output, "could not be ", cause)
    file = re.search(rf"{cause}: '([^']*)'", line)
    assert file, f"no file named: {line}"
    assert file[1].startswith(os.fspath(trial.checkpoints)), line
    return f"{cause}, {Path(file[1]).name}, checkpoints before it whole"


def may_mount(folder: Path) -> bool:
    """Whether a process may mount its own file systems here."""
    script = 'mount -t tmpfs tmpfs "$0"'
    command = ["unshare", "-rm", "sh", "-c", script, os.fspath(folder)]
    return shutil.which("unshare") is not None and subprocess.run(command).returncode == 0


def damaged(trial: Trial) -> str:
    """Refused with file and offset if named; skipped with a message if not."""
    good = CHECKPOINT_INTERVAL * trial.random.randrange(1, 4)
    bad = good + CHECKPOINT_INTERVAL * trial.random.randrange(1, 4)
    told = []
    cases: list[dict[str, Any]] = []
    for number, damage in enumerate((flip, cut)):  # one byte, and the end
        directory = trial.folder / str(number)
        trial.baseline.copy(trial.ranks, good, directory)
        file, offset = damage(trial.random, trial.baseline.copy(trial.ranks, bad, directory))
        told.append((file, offset))
        elsewhere = trial.folder / f"elsewhere-{number}"
        named = directory / checkpoint_name(bad)
        cases.append({"resume": named, "checkpoint_dir": elsewhere})
        cases.append({"checkpoint_dir": directory})
    results = trial.run_main(*cases)
    last = checkpoint_name(STEPS)
    expected = jobs.weights(trial.baseline.uninterrupted(trial.ranks) / last)
    for number, (file, offset) in enumerate(told):
        (code, output), (code_of_auto, output_of_auto) = results[2 * number : 2 * number + 2]
        assert code == 1, output
        line = expect_error(output, os.fspath(file))
        # The manifest is small, and checked as a whole.
        assert file.name == FILE_NAME or holds_offset(line, offset), f"{offset} is not in: {line}"
        assert code_of_auto == 0, output_of_auto
        expect("passed over a damaged checkpoint: ", output_of_auto)
        expect(f"{good} steps done", output_of_auto)
        directory = trial.folder / str(number)
        assert jobs.same(jobs.weights(directory / last), expected), "other weights"
    places = ", ".join(
        f"{how} at {file.name}:{offset}" for how, (file, offset) in zip(("flipped", "cut"), told)
    )
    return f"{places}: refused by file and offset; auto falls back to step {good}, same end"


def flip(generator: random.Random, checkpoint: Path) -> tuple[Path, int]:
    """Changes one byte; gives file and offset."""
    file = generator.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    offset = generator.randrange(len(content))
    content[offset] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
    return file, offset


def cut(generator: random.Random, checkpoint: Path) -> tuple[Path, int]:
    """Takes the end off a file; gives file and where it ends now."""
    file = generator.choice(sorted(checkpoint.iterdir()))
    offset = generator.randrange(file.stat().st_size)
    os.truncate(file, offset)
    return file, offset


def holds_offset(line: str, offset: int) -> bool:
    """Whether an error line names the offset, or offsets around it."""
    between = re.search(r"between offsets (\d+) and (\d+)", line)
    if between:
        return int(between[1]) <= offset < int(between[2])
    return f"ends at offset {offset}" in line


def other_shape(trial: Trial) -> str:
    """Refused, each difference listed: checkpoint, run."""
    data = Path(shutil.copytree(trial.baseline.data, trial.folder / "data"))
    for part in ("train", "test"):
        path = data / part / "metadata.json"
        metadata = json.loads(path.read_text())
        metadata["vocab_sizes"][1] += 11
        path.write_text(json.dumps(metadata))
    start = trial.baseline.uninterrupted(trial.ranks) / checkpoint_name(STEPS)
    shape = {"embedding_dim": 8, "bottom_mlp": "24,8", "top_mlp": "16,8,1"}
    common = {"resume": start, "checkpoint_dir": trial.checkpoints}
    first, second = trial.run_main({**common, "data_dir": data}, {**common, **shape})
    assert (first[0], second[0]) == (1, 1), (first, second)
    rows = jobs.VOCAB_SIZES[1]
    expect_error(first[1], f"rows of table 1: checkpoint {rows}, run {rows + 11}")
    expect_error(
        second[1],
        "embedding_dim: checkpoint 16, run 8",
        "bottom_mlp: checkpoint 32-16, run 24-8",
        "top_mlp: checkpoint 32-1, run 16-8-1",
    )
    assert not jobs.whole(trial.checkpoints)
    return "other vocabulary, width and layers: refused, each difference listed"


def other_data(trial: Trial) -> str:
    """Refused unless --ignore_data_change."""
    step = trial.random.randrange(CHECKPOINT_INTERVAL, STEPS, CHECKPOINT_INTERVAL)
    trial.baseline.copy(trial.ranks, step, trial.checkpoints)
    data = Path(shutil.copytree(trial.baseline.data, trial.folder / "data"))
    part = trial.random.choice(["train", "test"])
    path = data / part / trial.random.choice(["label.bin", "category.bin"])
    content = bytearray(path.read_bytes())
    offset = 4 * trial.random.randrange(len(content) // 4)
    content[offset] ^= 1  # another label, another id of a table with more than one row
    path.write_bytes(content)
    changed = {"checkpoint_dir": trial.checkpoints, "data_dir": data, "bad_ids": "clip"}
    refused, ignored = trial.run_main(changed, {**changed, "ignore_data_change": True})
    assert refused[0] == 1, refused
    which = {"train": "training", "test": "test"}[part]
    expect_error(refused[1], f"the {which} data changed", "--ignore_data_change")
    assert ignored[0] == 0, ignored
    assert jobs.whole(trial.checkpoints)[-1] == STEPS
    return f"a bit of {part}/{path.name} changed: refused; goes on if told to"


def not_finite(trial: Trial) -> str:
    """All ranks stop before the update, naming rank and samples; the last checkpoint loads."""
    rank, step = trial.any_rank(), trial.random.randrange(2, jobs.EPOCH_STEPS)
    local_batch = jobs.GLOBAL_BATCH // trial.ranks
    first = step * jobs.GLOBAL_BATCH + rank * local_batch
    data = Path(shutil.copytree(trial.baseline.data, trial.folder / "data"))
    dense = np.fromfile(data / "train" / "dense.bin", "<f4").reshape(-1, jobs.NUM_DENSE)
    dense[first + trial.random.randrange(local_batch)] = 1e30  # infinite in 16 bits
    dense.tofile(data / "train" / "dense.bin")
    settings = {"data_dir": data, "amp": True, "checkpoint_interval": 1}
    settings["checkpoint_dir"] = trial.checkpoints
    good = {**settings, "checkpoint_dir": trial.folder / "good", "early_stop": step}
    (code_of_good, output_of_good), (code, output) = trial.run_main(good, settings)
    assert code_of_good == 0, output_of_good
    assert code == 1, output
    expect_error(
        output,
        f"step {step} ",
        "a loss or gradient that is not finite",
        f"rank {rank} (samples {first} to {first + local_batch - 1})",
    )
    assert jobs.whole(trial.checkpoints)[-1] == step
    last = checkpoint_name(step)
    found, expected = (
        jobs.weights(path / last) for path in (trial.checkpoints, trial.folder / "good")
    )
    assert jobs.same(found, expected), "other weights than those before the step"
    return f"not finite at step {step} on rank {rank}: named, all stopped before the update"
