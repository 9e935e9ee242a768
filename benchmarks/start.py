"""Seconds from `python3 main.py` to the end of the first step, compared with importing TensorFlow.

    python3 -m benchmarks.start [DATA] [--ranks 1,2] [--rounds N]

DATA is a folder such as `make data` writes; the settings are those of `make train`. A round starts,
in turn, a process that only imports TensorFlow, one that imports what main.py does, and the
training on each number of ranks. Each is timed by the lines that it prints.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from benchmarks.ranks import ROOT

TENSORFLOW = "import tensorflow; print('imported', flush=True)"
PROGRAM = "import main; main.import_program(); print('imported', flush=True)"
BEGIN = "the rank begins"
# What main.py prints before it builds the tables, and after the first step.
PLANNED, STEPPED = "embedding: ", "Iteration:1\t"
# Says when a rank's shell becomes main.py: launchers work before.
ANNOUNCED = ["sh", "-c", f'echo "{BEGIN}"; exec "$0" "$@"']


def seconds_until(command: Sequence[str], marks: Sequence[str]) -> list[float]:
    """Runs a command, and returns the seconds from its start to the first line with each mark.

    Raises:
        ValueError: It failed, or a mark is missing; the message ends with its last lines.
    """
    found: dict[str, float] = {}
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter() - begin
                lines.append(line)
                for mark in marks:
                    if mark in line:
                        found.setdefault(mark, now)
        if process.returncode or len(found) < len(marks):
            errors.seek(0)
            raise ValueError(
                f"{' '.join(command)} ended with code {process.returncode}; its last lines are:\n"
                f"{''.join(lines)[-1000:]}{errors.read()[-1000:]}"
            )
    return [found[mark] for mark in marks]


def training(data: str, ranks: int, folder: str) -> list[str]:
    """The command of `make train`, for one step.

    Args:
        data: The folder of the data.
        ranks: Number of ranks; one runs without a launcher.
        folder: For the files of the run and its checkpoints.
    """
    flags = ["--flagfile=presets/demo.flags", f"--data_dir={data}"]
    flags += [f"--run_dir={folder}/run", f"--checkpoint_dir={folder}/checkpoints"]
    flags += ["--early_stop=1", "--log_interval=1"]
    command = [*ANNOUNCED, sys.executable, "main.py", *flags]
    if ranks == 1:
        return command
    launcher = [cli.find_horovodrun(), "--gloo", "-np", str(ranks)]
    return [*launcher, "./hvd_wrapper.sh", *command]


def measure(data: str, ranks: Sequence[int]) -> dict[str, float]:
    """Measures one round.

    Returns:
        The seconds of each phase by its name.
    """
    (tensorflow,) = seconds_until([sys.executable, "-c", TENSORFLOW], ["imported"])
    (program,) = seconds_until([sys.executable, "-c", PROGRAM], ["imported"])
    phases = {"TensorFlow": tensorflow, "program": program}
    for number in ranks:
        with tempfile.TemporaryDirectory() as folder:
            begun, planned, stepped = seconds_until(
                training(data, number, folder), [BEGIN, PLANNED, STEPPED]
            )
        phases[f"{number} launch"] = begun
        phases[f"{number} plan"] = planned - begun
        phases[f"{number} build"] = stepped - planned
        phases[f"{number} main.py"] = stepped - begun
        phases[f"{number} command"] = stepped
    return phases


def describe(seconds: Mapping[str, float], ranks: Sequence[int]) -> list[str]:
    """The lines about one round, or about the medians of all.

    Args:
        seconds: What `measure` returned.
        ranks: As given to it.
    """
    tensorflow = seconds["TensorFlow"]
    lines = [
        f"  TensorFlow's import alone {tensorflow:.2f} s, main.py's {seconds['program']:.2f} s"
    ]
    for number in ranks:
        total = seconds[f"{number} main.py"]
        lines.append(
            f"  {number} rank{'s' * (number > 1)}: {total:.2f} s from `python3 main.py` to the end "
            f"of the first step, {total - tensorflow:+.2f} s from TensorFlow's import alone: "
            f"imports, data and memory plan {seconds[f'{number} plan']:.2f} s, tables, graphs and "
            f"step {seconds[f'{number} build']:.2f} s"
        )
        if number > 1:
            lines.append(
                f"    {seconds[f'{number} command']:.2f} s from `horovodrun`, which took "
                f"{seconds[f'{number} launch']:.2f} s before it started the ranks"
            )
    return lines


def main() -> int:
    """Prints each round and the medians; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", default="build/demo", help="default: build/demo")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    options = parser.parse_args()
    ranks = [int(number) for number in options.ranks.split(",")]
    if not Path(ROOT, options.data, "train").is_dir():
        raise ValueError(
            f"{options.data}: expected a folder with train/, found none; run `make data`"
        )
    measure(options.data, ranks)  # files enter the page cache, and modules are compiled
    rounds = []
    for _ in range(options.rounds):
        rounds.append(measure(options.data, ranks))
        print("\n".join(describe(rounds[-1], ranks)), flush=True)
    print(f"medians of {options.rounds} rounds")
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print("\n".join(describe(medians, ranks)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
