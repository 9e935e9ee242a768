"""Raw logs to record files in two passes: build the dictionaries, then write final ids.

Pass one parses the text once, numbers every category provisionally in order of first appearance
and writes the rows as provisional records. Pass two replaces provisional ids by final ones, moves
the rows of the other splits to their files and leaves those that train where they are. No text is
parsed twice. Memory grows with the distinct values and not with the rows; beside the result no
disk is taken. It knows nothing of flags.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from preprocess.dictionary import Dictionary
from preprocess.files import PendingFiles, write_all, write_json
from preprocess.progress import PassProgress
from preprocess.rules import FinalIds, Rules, final_ids
from preprocess.splits import TEST, TRAIN, VALIDATION, Part, split_by_fraction, split_terabyte
from preprocess.tsv import Batch, Parser, read_blocks

_RECORD_TYPE = np.dtype("<i4")
_COPY_ROWS = 32768

Progress = Callable[[str, int], PassProgress]
"""Makes the display of a pass from its title and the units it has."""


@dataclass(frozen=True)
class Options:
    """What to make of the logs.

    Attributes:
        rules: meaning of the fields.
        num_dense: integer columns.
        num_categorical: hexadecimal columns.
        split: "fraction" or "terabyte".
        test_fraction: share of the rows that test, at the end.
        validation_fraction: share that validates, before the test rows.
        block_bytes: text parsed at once; the output does not depend on it.
    """

    rules: Rules
    num_dense: int = 13
    num_categorical: int = 26
    split: str = "fraction"
    test_fraction: float = 0.1
    validation_fraction: float = 0.0
    block_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        """Refuse what no log can have, before it is read.

        Raises:
            ValueError: naming the option, what was expected and what was found.
        """
        if self.num_dense < 0 or self.num_categorical < 1:
            raise ValueError(
                "--num_dense and --num_categorical: expected at least 0 and 1, found"
                f" {self.num_dense} and {self.num_categorical}"
            )
        if self.split not in ("fraction", "terabyte"):
            raise ValueError(f"--split: expected fraction or terabyte, found {self.split!r}")
        if self.split == "fraction":
            split_by_fraction(10**12, self.validation_fraction, self.test_fraction)

    @property
    def validates(self) -> bool:
        """Whether there is a validation file."""
        return self.split == "terabyte" or self.validation_fraction > 0

    @property
    def columns(self) -> int:
        """int32 numbers in a record."""
        return 1 + self.num_dense + self.num_categorical

    def parts(self, rows_by_file: Sequence[int]) -> list[Part]:
        """The splits, in the order of their rows."""
        if self.split == "terabyte":
            return split_terabyte(rows_by_file)
        return split_by_fraction(sum(rows_by_file), self.validation_fraction, self.test_fraction)


@dataclass
class _FirstPass:
    """What pass one learns."""

    dictionaries: list[Dictionary]
    rows_by_file: list[int]
    raised_dense: int = 0
    positives: int = 0
    missing_categories: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        description: the content of `records.json`.
        first_seconds: duration of pass one.
        second_seconds: duration of pass two.
    """

    description: dict[str, Any]
    first_seconds: float
    second_seconds: float

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(self.description[f"{name}_samples"] for name in ("train", "validation", "test"))


def preprocess(
    sources: Sequence[Path],
    output: Path,
    options: Options,
    progress: Progress = PassProgress,
) -> Summary:
    """Writes `train_data.bin`, `test_data.bin`, perhaps `val_data.bin`, and `records.json`.

    Nothing appears under these names before all rows have been read and found good.

    Args:
        sources: raw logs, plain or `.gz`, in order.
        output: folder, made if absent.
        options: rules and splits.
        progress: makes each pass's display; silent by default.

    Raises:
        ValueError: for a bad row, named by file and line, or rows that cannot be split as asked.
        OSError: if a file cannot be read or written.
    """
    sizes = [path.stat().st_size for path in sources]
    output.mkdir(parents=True, exist_ok=True)
    names = (TRAIN, TEST, VALIDATION) if options.validates else (TRAIN, TEST)
    with PendingFiles([output / f"{name}_data.bin" for name in names]) as files:
        start = time.perf_counter()
        with progress("pass 1, dictionaries", sum(sizes)) as display:
            first = _first_pass(sources, sizes, options, files[0], display)
        if not sum(first.rows_by_file):
            raise ValueError(
                f"{', '.join(map(str, sources))}: expected rows, found none; give a raw click log"
            )
        parts = {part.name: part for part in options.parts(first.rows_by_file)}
        middle = time.perf_counter()
        tables = [final_ids(options.rules, d.values, d.counts) for d in first.dictionaries]
        description = _description(sources, options, first, tables, parts)
        first.dictionaries.clear()
        with progress("pass 2, ids", sum(first.rows_by_file)) as display:
            _second_pass(dict(zip(names, files, strict=True)), parts, options, tables, display)
        # A description must never stand beside records of another run.
        (output / "records.json").unlink(missing_ok=True)
    if not options.validates:
        (output / f"{VALIDATION}_data.bin").unlink(missing_ok=True)
    write_json(output / "records.json", description)
    return Summary(description, middle - start, time.perf_counter() - middle)


def _first_pass(
    sources: Sequence[Path],
    sizes: Sequence[int],
    options: Options,
    output: BinaryIO,
    display: PassProgress,
) -> _FirstPass:
    """Parses all logs and writes provisional records; encodes one batch while parsing the next."""
    tables = options.num_categorical
    learnt = _FirstPass(
        [Dictionary() for _ in range(tables)], [0] * len(sources), missing_categories=[0] * tables
    )
    parser = Parser(sources, options.num_dense, tables)
    before = [sum(sizes[:index]) for index in range(len(sizes))]
    with (
        ThreadPoolExecutor(1) as encoder,
        contextlib.closing(read_blocks(sources, options.block_bytes)) as blocks,
    ):
        encoding: Future[None] | None = None
        for block in blocks:
            batch = parser.parse(block)
            if encoding:
                encoding.result()
            encoding = encoder.submit(_encode, batch, options.rules, learnt, output)
            learnt.rows_by_file[block.file] += block.lines
            display.advance(before[block.file] + block.position, sum(learnt.rows_by_file))
        if encoding:
            encoding.result()
    return learnt


def _encode(batch: Batch, rules: Rules, learnt: _FirstPass, output: BinaryIO) -> None:
    """Appends a batch as provisional records; -1 is a missing category that is no value."""
    first_table = 1 + len(batch.dense)
    records = np.empty((len(batch.labels), first_table + len(batch.categories)), _RECORD_TYPE)
    records[:, 0] = batch.labels
    learnt.positives += int(np.count_nonzero(batch.labels))
    for column, values in enumerate(batch.dense, 1):
        learnt.raised_dense += int(np.count_nonzero(values < rules.lowest_dense))
        np.maximum(values, rules.lowest_dense, out=records[:, column])
    columns = zip(batch.categories, batch.missing, learnt.dictionaries, strict=True)
    for table, (raw, missing, dictionary) in enumerate(columns):
        if missing is not None:
            learnt.missing_categories[table] += int(np.count_nonzero(missing))
        modulus = rules.max_table_rows
        numbers = raw if modulus is None else raw % np.uint32(modulus)
        if missing is None or rules.missing_is_value:
            records[:, first_table + table] = dictionary.encode(numbers)
        else:
            known = np.flatnonzero(~missing)
            records[:, first_table + table] = -1
            records[known, first_table + table] = dictionary.encode(numbers[known])
    write_all(output, records)


def _second_pass(
    files: Mapping[str, BinaryIO],
    parts: Mapping[str, Part],
    options: Options,
    tables: Sequence[FinalIds],
    display: PassProgress,
) -> None:
    """Gives the provisional records, all in the training file, their final ids and places.

    Rows that train are the first ones and are rewritten where they are, or not at all if their
    provisional ids are final.
    """
    source = files[TRAIN]
    row_bytes = options.columns * _RECORD_TYPE.itemsize
    changed = [
        (column, ids.by_provisional)
        for column, ids in enumerate(tables, 1 + options.num_dense)
        if not ids.unchanged
    ]
    buffer = np.empty((_COPY_ROWS, options.columns), _RECORD_TYPE)
    done = 0
    for name, part in parts.items():
        if name == TRAIN and not changed:
            continue
        for start in range(part.start, part.stop, _COPY_ROWS):
            records = buffer[: min(_COPY_ROWS, part.stop - start)]
            source.seek(start * row_bytes)
            _read_all(source, records)
            for column, final in changed:
                records[:, column] = final.take(records[:, column])
            if name == TRAIN:
                source.seek(start * row_bytes)
            write_all(files[name], records)
            done += len(records)
            display.advance(done, done)
    source.truncate(parts[TRAIN].stop * row_bytes)


def _read_all(file: BinaryIO, records: NDArray[np.int32]) -> None:
    """Fills an array from an unbuffered file that holds enough."""
    view = memoryview(records).cast("B")  # type: ignore[arg-type]
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        assert count, "provisional records end early"
        view = view[count:]


def _description(
    sources: Sequence[Path],
    options: Options,
    first: _FirstPass,
    tables: Sequence[FinalIds],
    parts: Mapping[str, Part],
) -> dict[str, Any]:
    samples = {name: part.stop - part.start for name, part in parts.items()}
    return {
        "num_dense": options.num_dense,
        "vocab_sizes": [ids.vocab_size for ids in tables],
        "dense_log_offset": options.rules.dense_log_offset,
        "rules": options.rules.name,
        "train_samples": samples[TRAIN],
        "test_samples": samples[TEST],
        "validation_samples": samples.get(VALIDATION, 0),
        "frequency_threshold": options.rules.frequency_threshold,
        "max_table_rows": options.rules.max_table_rows,
        "split": options.split,
        "files": [path.name for path in sources],
        "rows_by_file": first.rows_by_file,
        "positives": first.positives,
        "lowest_dense": options.rules.lowest_dense,
        "dense_values_raised": first.raised_dense,
        "distinct_values": [len(ids.by_provisional) - 1 for ids in tables],
        "missing_categories": first.missing_categories,
    }
