"""How evenly rows and whole tables load the ranks, counted for 2 to 1,024 of them.

    python3 -m benchmarks.placement [--ranks=2,8,64] [--scaling=strong,weak]

Draws the keys of one step from streams as skewed as Criteo's, and counts what each rank sends and
receives when rows are spread by modulo, as this project does, by hash, or as whole tables by the
heuristic of NVIDIA's DLRM for PyTorch; each with and without `--compress`. Counts are exact for the
drawn keys and do not depend on the machine. A model of the step time, from published rates, is set
beside published steps on eight GPUs.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

from dlrm import cli

# TensorFlow announces itself when it is imported.
with cli.project_environment(), cli.stderr_on_failure():
    from benchmarks.placement.plot import plot_placement
    from benchmarks.placement.results import (
        GLOBAL_BATCH,
        LOCAL_BATCH,
        SCALINGS,
        Load,
        exchange_of,
        loads,
        published_text,
        results_text,
    )
    from benchmarks.placement.step_time import mean_rest
    from benchmarks.placement.streams import KeyStream
    from benchmarks.shapes import KAGGLE_VOCAB_SIZES, MLPERF_VOCAB_SIZES
    from dlrm.formats import atomic_files

TABLES = {"mlperf": MLPERF_VOCAB_SIZES, "kaggle": KAGGLE_VOCAB_SIZES}
PUBLISHED_RANKS = GLOBAL_BATCH // LOCAL_BATCH
MOST_RANKS = 1024


def numbers(name: str, text: str) -> list[int]:
    """The numbers of ranks in a flag.

    Raises:
        ValueError: One is not a power of two from 2 to `MOST_RANKS`.
    """
    found = []
    for word in text.split(","):
        ranks = int(word) if word.isdecimal() else 0
        if not 2 <= ranks <= MOST_RANKS or ranks & (ranks - 1):
            raise ValueError(f"--{name}: expected powers of two from 2 to 1024, found {word!r}")
        found.append(ranks)
    return found


def main() -> int:
    """Counts, prints the tables and writes the files; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    everything = ",".join(str(2**power) for power in range(1, 11))
    parser.add_argument("--ranks", default=everything, help=f"(default: {everything})")
    parser.add_argument("--scaling", default=",".join(SCALINGS), help="(default: strong,weak)")
    parser.add_argument("--tables", choices=sorted(TABLES), default="mlperf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/placement"))
    options = parser.parse_args()
    ranks = numbers("ranks", options.ranks)
    scalings = options.scaling.split(",")
    if unknown := [name for name in scalings if name not in SCALINGS]:
        raise ValueError(f"--scaling: expected some of {','.join(SCALINGS)}, found {unknown[0]!r}")
    sizes = TABLES[options.tables]
    stream = KeyStream(sizes, options.seed)

    eight = exchange_of(stream, sizes, LOCAL_BATCH, PUBLISHED_RANKS)
    rest = mean_rest(eight, LOCAL_BATCH)
    text = published_text(eight)
    print(f"{text}\nmean rest on A100: {rest:.2f} ms, which the steps below contain\n", flush=True)
    results: list[Load] = []
    for scaling in scalings:
        batch = f"{GLOBAL_BATCH:,} samples" if scaling == "strong" else f"{LOCAL_BATCH:,} a rank"
        part: list[Load] = []
        for number in ranks:
            part += loads(stream, sizes, scaling, number, rest)
        section = f"{scaling} scaling, {batch}\n\n{results_text(part)}\n"
        print(section, flush=True)
        text += f"\n{section}"
        results += part

    options.output.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([Load._fields, *results])
    atomic_files.write_text(options.output / "placement.md", text)
    atomic_files.write_text(options.output / "placement.csv", buffer.getvalue())
    plot_placement(str(options.output / "placement.png"), results)
    print(f"in {options.output}: placement.md, placement.csv, placement.png")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
