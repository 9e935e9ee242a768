"""How much the trained model's AUC depends on the seed and on the type that it computes in.

    python3 -m benchmarks.stability DATA --seeds=16 [--types=float32,float16] [-- FLAG ...]

Trains a model for each seed and type, each on one rank, several at a time, through the whole
schedule, and prints the AUC of each at its last evaluation, their mean and spread, and the
difference from float32 over models of the same seed. What is finished stays in the output folder:
the same command goes on where it was stopped, and more seeds only add to it. A run counts as
finished if its flags and its data are the same; after a change of the code, remove the folder.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from benchmarks.stability.plot import plot_stability
    from benchmarks.stability.runs import TYPES, Study, train_all
    from benchmarks.stability.table import markdown, table
    from dlrm.formats import atomic_files
    from dlrm.formats.json_files import read_json_object

FIRST_SEED = 8  # as in DeepLearningExamples' table of 16 seeds, to be laid beside it
DEMO = ("--flagfile=presets/demo.flags", "--auc_target=1")
DEMO_TARGET = 0.813


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the flags of main.py after `--`."""
    options, flags = arguments, list(DEMO)
    if "--" in arguments:
        place = arguments.index("--")
        options, flags = arguments[:place], arguments[place + 1 :]
    parser = cli.Parser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"FLAG: flags of main.py for every run (default: {' '.join(DEMO)})",
    )
    parser.add_argument("data", type=Path, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("build/stability"))
    parser.add_argument("--seeds", type=int, default=16, help="number of seeds (default: 16)")
    parser.add_argument(
        "--first_seed", type=int, default=FIRST_SEED, help=f"the first (default: {FIRST_SEED})"
    )
    parser.add_argument("--types", default=",".join(TYPES), help="with commas (default: all)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="runs at a time (default: one for each core; with GPUs set 1)",
    )
    parser.add_argument(
        "--target",
        type=float,
        default=DEMO_TARGET,
        help=f"AUC for which steps are counted (default: {DEMO_TARGET}, the demo's)",
    )
    return parser.parse_args(options), flags


def main() -> int:
    """Trains, prints the table and writes the files; returns the exit code."""
    options, flags = parse(sys.argv[1:])
    kinds = options.types.split(",")
    if unknown := [kind for kind in kinds if kind not in TYPES]:
        raise ValueError(f"--types: expected some of {','.join(TYPES)}, found {unknown[0]!r}")
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise ValueError(f"expected --{name} of 1 or more, found {getattr(options, name)}")
    if not (options.data / "train").is_dir():
        raise ValueError(
            f"{options.data}: expected a folder with train/ and test/, found no train/; run "
            "`make data`"
        )
    study = Study(options.data.resolve(), options.output.resolve(), tuple(flags))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = train_all(study, kinds, seeds, options.jobs, lambda line: print(line, flush=True))

    rows = table(runs, options.target)
    text = markdown(rows)
    description = options.data / "raw.json"  # that of synthetic logs
    best = None
    if description.exists():
        best = read_json_object(description, "write the logs again")["best_auc_test"]
        text += f"\nThe best possible AUC is {best:.6f}.\n"
    print(f"\n{text}")
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    atomic_files.write_text(study.output / "stability.md", text)
    atomic_files.write_text(study.output / "stability.csv", buffer.getvalue())
    plot_stability(str(study.output / "stability.png"), runs, best)
    print(f"in {study.output}: stability.md, stability.csv, stability.png, runs.jsonl")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(cli.exit_code(main, "interrupted; finished runs are kept, the same command goes on"))
