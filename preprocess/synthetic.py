"""Synthetic click logs in Criteo's raw format, described by the best possible AUC.

`python3 -m preprocess.synthetic logs.tsv --rows 1000000 --seed 1` writes `logs.tsv` and
`logs.json`. Rows are generated in blocks, so that memory does not grow with their number. Row i
depends only on the seed and the options of the click model: a longer log begins with the shorter
one. This module must not know about preprocessing or training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm.formats.json_files import write_json_object
    from dlrm.formats.zip_strict import zip_strict
    from preprocess.click_model import BLOCK_ROWS, ClickModel, ClickModelOptions, SampleBlock
    from preprocess.files import pending_files, write_all
    from preprocess.score_histogram import ScoreHistogram
    from preprocess.splits import tail_rows

DEFAULT_VOCAB_SIZES = (
    5000, 120, 30, 1500, 250, 3, 700, 60, 10, 3500, 400, 100, 15,
    900, 200, 40, 4, 300, 20, 2500, 1200, 2000, 500, 80, 150, 6,
)  # fmt: skip
"""26 tables, 19,588 rows: small enough that a million rows suffice to train every frequent id."""

_HASH_MULTIPLIER = np.uint32(0x9E3779B1)


def category_hash(table: int, ids: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Returns a 32-bit hash of each id; within a table no two ids collide.

    Args:
        table: The index of the table.
        ids: The ids, any shape.

    Returns:
        The hashes, uint32 of the same shape.
    """
    values = ids.astype(np.uint32) + np.uint32((table + 1) * 0x85EBCA6B & 0xFFFFFFFF)
    # Odd products and right-shift xors are each invertible modulo 2^32.
    for shift in (15, 13, 16):
        values ^= values >> np.uint32(shift)
        values *= _HASH_MULTIPLIER
    return values


def _digit_table(strings: Sequence[bytes]) -> NDArray[np.uint32]:
    """Returns strings of four characters as one uint32 each; NUL characters are dropped later."""
    return np.frombuffer(b"".join(strings), dtype="<u4")


_HEX4 = _digit_table([b"%04x" % n for n in range(65536)])
_DECIMAL4 = _digit_table([(b"%d" % n).rjust(4, b"\0") for n in range(10000)])
_DECIMAL4_PADDED = _digit_table([b"%04d" % n for n in range(10000)])


def format_rows(block: SampleBlock, vocab_sizes: Sequence[int], rows: int) -> bytes:
    """Returns the first `rows` rows of a block as tab-separated text.

    Every field is laid out at its greatest width and padded with NUL; then all NULs are dropped at
    once. No loop runs over rows.
    """
    dense = block.dense[:, :rows]
    width = 1 + 10 * len(dense) + 9 * len(block.ids) + 1
    text = np.zeros((rows, width), np.uint8)
    text[:, 0] = ord("0") + block.labels[:rows]
    position = 1
    for values, missing in zip_strict(dense, block.dense_missing):
        size = np.abs(values)
        high, low = np.divmod(size, 10000)
        digits = np.zeros((rows, 2), "<u4")
        digits[:, 0] = np.where(high > 0, _DECIMAL4[high], 0)
        digits[:, 1] = np.where(high > 0, _DECIMAL4_PADDED[low], _DECIMAL4[low])
        digits[missing[:rows]] = 0
        text[:, position] = ord("\t")
        text[:, position + 1] = np.where((values < 0) & ~missing[:rows], ord("-"), 0)
        text[:, position + 2 : position + 10] = digits.view(np.uint8)
        position += 10
    for table, (ids, size) in enumerate(zip_strict(block.ids[:, :rows], vocab_sizes)):
        hashes = category_hash(table, ids)
        digits = np.empty((rows, 2), "<u4")
        digits[:, 0] = _HEX4[hashes >> np.uint32(16)]
        digits[:, 1] = _HEX4[hashes & np.uint32(0xFFFF)]
        digits[ids == size] = 0
        text[:, position] = ord("\t")
        text[:, position + 1 : position + 9] = digits.view(np.uint8)
        position += 9
    text[:, position] = ord("\n")
    flat = text.reshape(-1)
    return flat[flat != 0].tobytes()


def output_paths(output: Path, files: int) -> list[Path]:
    """Returns the names of the logs: `output` itself, or `name.0.tsv`, `name.1.tsv` and so on.

    Raises:
        ValueError: The name ends neither in `.tsv` nor in `.tsv.gz`.
    """
    stem, ending = _split_name(output)
    if files == 1:
        return [output]
    return [output.with_name(f"{stem}.{index}{ending}") for index in range(files)]


def _split_name(output: Path) -> tuple[str, str]:
    for ending in (".tsv", ".tsv.gz"):
        if output.name.endswith(ending) and len(output.name) > len(ending):
            return output.name[: -len(ending)], ending
    raise ValueError(f"{output}: expected a name ending in .tsv or .tsv.gz; rename the output")


def generate(
    output: Path,
    rows: int,
    seed: int,
    options: ClickModelOptions,
    files: int = 1,
    test_fraction: float = 0.1,
) -> dict[str, Any]:
    """Writes `rows` rows into `files` logs, and their description.

    Args:
        output: The name of the log, ending in `.tsv` or `.tsv.gz`; see `output_paths` for several.
        rows: The number of rows of all logs; file k of K holds rows [k*rows//K, (k+1)*rows//K).
        seed: The seed; the same seed and options give the same rows.
        options: The options of the click model.
        files: The number of logs.
        test_fraction: The fraction of rows, at the end, on which `best_auc_test` is computed.

    Returns:
        The content of the `.json` file: rows, positives, the best AUC and log loss that any model
        can reach (those of the true probabilities), and the AUC without pair effects.

    Raises:
        ValueError: A number is out of range or the name has another ending.
    """
    if rows < 1 or files < 1 or files > rows:
        raise ValueError(
            f"rows and files: expected 1 <= files <= rows, found {rows} rows and {files} files"
        )
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a value in [0, 1], found {test_fraction}")
    paths = output_paths(output, files)
    description = output.with_name(_split_name(output)[0] + ".json")
    model = ClickModel(options, seed)
    whole, test, alone = ScoreHistogram(), ScoreHistogram(), ScoreHistogram()
    test_start = rows - tail_rows(rows, test_fraction)
    ends = [(k + 1) * rows // files for k in range(files)]
    output.parent.mkdir(parents=True, exist_ok=True)
    description.unlink(missing_ok=True)
    with pending_files(paths) as logs:
        for first in range(0, rows, BLOCK_ROWS):
            block = model.block(first // BLOCK_ROWS)
            count = min(BLOCK_ROWS, rows - first)
            text = format_rows(block, options.vocab_sizes, count)
            _write_parts(logs, ends, first, count, text)
            whole.add(block.logits[:count], block.labels[:count])
            alone.add(block.logits_without_pairs[:count], block.labels[:count])
            skip = min(max(test_start - first, 0), count)
            test.add(block.logits[skip:count], block.labels[skip:count])
    content: dict[str, Any] = {
        "files": [path.name for path in paths],
        "rows": rows,
        "seed": seed,
        "positives": whole.positives,
        "best_auc": whole.auc(),
        "best_log_loss": whole.log_loss(),
        "auc_without_pairs": alone.auc(),
        "test_fraction": test_fraction,
        "test_rows": test.rows,
        "best_auc_test": test.auc(),
        "best_log_loss_test": test.log_loss(),
        "interacting_tables": model.pairs,
        "options": asdict(options),
    }
    write_json_object(description, content, indent=2)
    return content


def _write_parts(
    logs: Sequence[BinaryIO], ends: Sequence[int], first: int, count: int, text: bytes
) -> None:
    """Writes rows [first, first + count), given as text, to the logs that hold these rows."""
    start = 0
    lines: NDArray[np.intp] | None = None
    for log, end in zip_strict(logs, ends):
        if end <= first:
            continue
        stop = len(text)
        if end < first + count:
            if lines is None:
                lines = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
            stop = int(lines[end - first - 1]) + 1
        write_all(log, memoryview(text)[start:stop])
        start = stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments), "interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m preprocess.synthetic",
        description="Write synthetic click logs in Criteo's raw format, with the best possible AUC"
        " in a .json file beside them.",
    )
    add = parser.add_argument
    add("output", type=Path, help="log to write, *.tsv or *.tsv.gz")
    add("--rows", type=int, required=True, help="number of rows")
    add("--seed", type=int, default=1, help="seed of the click model and of the rows")
    add("--files", type=int, default=1, help="number of logs to divide the rows into")
    add("--test_fraction", type=float, default=0.1, help="fraction of rows for best_auc_test")
    add("--vocab_sizes", type=json.loads, default=list(DEFAULT_VOCAB_SIZES),
        help="number of rows of each table, as a JSON list")  # fmt: skip
    defaults = ClickModelOptions(DEFAULT_VOCAB_SIZES)
    for name, text in _OPTION_HELP.items():
        value = getattr(defaults, name)
        add(f"--{name}", type=type(value), default=value, help=text)
    return parser


_OPTION_HELP = {
    "num_dense": "number of integer columns",
    "zipf": "exponent of the power law of the ids",
    "ctr": "fraction of positive labels aimed at",
    "dense_strength": "standard deviation of the dense part of the logit",
    "id_strength": "standard deviation of the sum of the effects of single ids",
    "pair_strength": "standard deviation of the sum of the effects of pairs of ids",
    "pairs": "number of pairs of tables that interact",
    "pair_rank": "width of the latent vectors of a pair",
    "missing": "mean fraction of missing values",
    "negative": "fraction of -1 among dense values",
}


def _run(arguments: Sequence[str] | None) -> int:
    flags = vars(_parser().parse_args(arguments))
    sizes = flags["vocab_sizes"]
    if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"--vocab_sizes: expected a JSON list of integers, found {sizes!r}")
    options = ClickModelOptions(tuple(sizes), **{name: flags[name] for name in _OPTION_HELP})
    start = time.perf_counter()
    content = generate(
        flags["output"], flags["rows"], flags["seed"], options,
        flags["files"], flags["test_fraction"],
    )  # fmt: skip
    seconds = time.perf_counter() - start
    rows = content["rows"]
    print(f"{rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s; "
          f"{content['positives'] / rows:.4f} positive")  # fmt: skip
    for key in ("best_auc", "best_auc_test", "auc_without_pairs", "best_log_loss"):
        value = content[key]
        print(f"{key} {'undefined' if value is None else format(value, '.5f')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
