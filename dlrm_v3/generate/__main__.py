"""`python3 -m dlrm_v3.generate --preset=tiny OUT`: writes streaming data, or what is missing of it.

The bytes depend on the settings alone, not on the number of processes nor on interruptions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    from dlrm.formats.quantities import size_text
    from dlrm_v3.data.layout import SHARD, StreamMetadata, shard_folder
    from dlrm_v3.data.shard import read_description
    from dlrm_v3.generate.run import begin, write_best, write_shards
    from dlrm_v3.generate.settings import add_settings, stream_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    interrupted = "interrupted; finished shards are kept, the same command goes on"
    return cli.exit_code(lambda: _run(arguments), interrupted)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m dlrm_v3.generate",
        description="Write DLRMv3's streaming data: users, items and their events over time.",
    )
    add = parser.add_argument
    add("output", type=Path, help="folder to write; what is finished in it is kept")
    add("--processes", type=int, default=1, help="processes that write shards")
    add("--shards_to_write", metavar="FIRST:LAST", help="write these shards only, both included")
    add_settings(parser)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    flags = vars(_parser().parse_args(arguments))
    config = stream_config(flags)
    if flags["processes"] < 1:
        raise ValueError(f"--processes: expected at least 1, found {flags['processes']}")
    shards = _shards(flags["shards_to_write"], config.written_shards)
    folder, metadata = flags["output"], StreamMetadata(flags["preset"], config)
    begin(folder, metadata)
    start = time.perf_counter()
    events = size = 0
    for shard in write_shards(folder, metadata, shards, flags["processes"]):
        description = read_description(folder, metadata, shard)
        events += description["events"] + description["candidates"]
        size += description["bytes"]
        print(f"{shard_folder(folder, shard) / SHARD}: complete", flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{events:,} events and candidates, {size_text(size)} in {seconds:.1f} s: "
        f"{events / seconds:,.0f} a second; processes: {flags['processes']}"
    )
    best = write_best(folder, metadata)
    if best is None:
        print("other shards are missing still; best.json is written with the last one")
    else:
        _print_best(best)
    return 0


def _shards(text: str | None, count: int) -> range:
    """The shards that a text such as 3:5 names; all for None."""
    if text is None:
        return range(count)
    first, colon, last = text.partition(":")
    if colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < count:
        return range(int(first), int(last) + 1)
    raise ValueError(
        f"--shards_to_write: expected FIRST:LAST with 0 <= FIRST <= LAST < {count}, found {text!r}"
    )


def _print_best(best: dict[str, Any]) -> None:
    """Prints the figures of whole parts."""
    for part, values in best.items():
        print(f"best possible, {part}: {values['candidates']:,} candidates, {_figures(values)}")
        for name in ("user_alone", "item_alone"):
            print(f"  {name}: {_figures(values[name])}")


def _figures(values: dict[str, Any]) -> str:
    names = ("rate", "normalised_entropy", "auc", "accuracy")
    found = [(name, values.get(name)) for name in names]
    return ", ".join(
        f"{name} {'undefined' if x is None else format(x, '.5f')}" for name, x in found
    )


if __name__ == "__main__":
    sys.exit(main())
