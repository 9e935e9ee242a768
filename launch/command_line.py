"""Starts a training on several ranks, and restarts it from its last checkpoint if it fails.

    python3 -m launch -np 8 -- main.py --data_dir=DATA --checkpoint_dir=CHECKPOINTS ...

For users without a scheduler that restarts jobs. Options before `--` that are not its own go to
horovodrun (such as -H host1:4,host2:4), or with --mpi to Open MPI's mpirun. On a SIGTERM or Ctrl-C
the job writes a checkpoint and ends with code 75; a second signal ends it at once.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli
from dlrm.config import SETTINGS
from launch.supervisor import RESTARTS, Supervisor

WRAPPER = Path(__file__).resolve().parent.parent / "hvd_wrapper.sh"
MAX_RESTARTS = 3
MPI_OPTIONS = (
    # The wrapper divides the cores; mpirun would leave each rank a single one.
    *("--bind-to", "none"),
    # Seconds that the other ranks have when one has ended, to say why they end as well; as long as
    # horovodrun gives them.
    *("--mca", "odls_base_sigkill_timeout", "5"),
    # On other hosts, too.
    *("-x", "PYTHONUNBUFFERED", "-x", RESTARTS),
)


def main(argv: Sequence[str]) -> int:
    """Runs the job and returns the exit code.

    Raises:
        ValueError, OSError: The command line cannot be used.
    """
    options, runner_options, command = parse(argv)
    folder = flag_value(command[1:], "checkpoint_dir")
    resume = flag_value(command[1:], "resume")
    max_restarts = options.max_restarts
    if max_restarts is None:
        max_restarts = MAX_RESTARTS if folder else 0
    if max_restarts and not folder:
        raise ValueError(
            "expected --checkpoint_dir among the flags, found none: with --max_restarts="
            f"{max_restarts} a restart would begin anew; name a folder or set --max_restarts=0"
        )
    runner = [_find_mpirun(), *MPI_OPTIONS] if options.mpi else [cli.find_horovodrun(), "--gloo"]
    start = [*runner, "-np", str(options.np), *runner_options, str(WRAPPER)]
    job = [*start, sys.executable, *command]
    # What --resume names was the start of the first attempt; a restart continues from later.
    restart = job if resume is None else [*job, "--resume=auto"]
    return Supervisor(job, restart, max_restarts, Path(folder) if folder else None).run()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Returns this command's options, the runner's options, and the command after `--`.

    Raises:
        ValueError: An option or the command is missing or malformed.
    """
    parser = cli.Parser(
        prog="python3 -m launch",
        usage="%(prog)s -np N [--max_restarts K] [--mpi] [options of horovodrun or mpirun] -- "
        "main.py --flags...",
        description=(
            "Runs a training on N ranks and restarts it from its last checkpoint if it fails."
        ),
        allow_abbrev=False,
        add_help=False,  # with -h as an option, -hostfile would be -h with an argument
    )
    parser.add_argument("--help", action="help", help="show this and exit; also -h")
    parser.add_argument("-np", type=int, required=True, help="number of ranks")
    parser.add_argument(
        "--max_restarts",
        type=int,
        help=f"maximum number of restarts (default: {MAX_RESTARTS}; 0 without --checkpoint_dir)",
    )
    parser.add_argument("--mpi", action="store_true", help="start the ranks with Open MPI's mpirun")
    end = argv.index("--") if "--" in argv else len(argv)
    words = ["--help" if word == "-h" else word for word in argv[:end]]
    options, runner_options = parser.parse_known_args(words)
    command = list(argv[end + 1 :])
    for name, least in (("np", 1), ("max_restarts", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            dashes = "-" if name == "np" else "--"
            parser.error(f"expected {dashes}{name} of {least} or more, found {value}")
    if not command:
        parser.error("expected -- and main.py with its flags, found none")
    return options, runner_options, command


def _find_mpirun() -> str:
    found = shutil.which("mpirun")
    if found is None:
        raise ValueError(
            "--mpi: expected mpirun on PATH, found none; install Open MPI (sudo apt-get install "
            "openmpi-bin libopenmpi-dev) and run `make mpi-setup`, or leave --mpi out"
        )
    return found


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag of main.py, read from the arguments and their flag files.

    absl would read the flag files as well, but only main.py may depend on it, so that every other
    program works on plain settings; finding one flag takes a few lines.

    Args:
        arguments: The arguments of main.py.
        name: The flag, without dashes; its further names are those of the settings.

    Returns:
        The last value given; None if there is none.

    Raises:
        ValueError: A flag file cannot be read.
    """
    aliases = {alias for s in SETTINGS if s.name == name for alias in s.aliases}
    value = None
    words = iter(arguments)
    for word in words:
        key, equals, given = word.lstrip("-").partition("=")
        if not word.startswith("-") or key not in {name, *aliases, "flagfile"}:
            continue
        given = given if equals else next(words, "")
        if key == "flagfile":
            from_file = flag_value(_read_lines(given), name)
            value = value if from_file is None else from_file
        else:
            value = given
    return value


def _read_lines(flagfile: str) -> list[str]:
    try:
        text = Path(flagfile).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise ValueError(f"--flagfile: {error}") from error
    return [line.strip() for line in text.splitlines()]
