"""Pass one builds the vocabulary: it parses all text once and gives every value a provisional id.

`first_pass` has what it leaves, and `recorder` how rows get there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm.data.read_ahead import read_ahead
from preprocess.bad_rows import BadRows
from preprocess.engine_polars.blocks import ResumePoint, TextBlock, read_blocks
from preprocess.engine_polars.column_parser import ColumnParser
from preprocess.engine_polars.first_pass import FirstPass, restored
from preprocess.engine_polars.learn import load_learned
from preprocess.engine_polars.parser import LogParser, ParsedRows
from preprocess.engine_polars.recorder import Recorder
from preprocess.options import Options
from preprocess.outputs import Save
from preprocess.progress import PassProgress

_PARSERS = min(os.cpu_count() or 1, 4)  # each holds a block of text and its columns


def build_vocabulary(
    sources: Sequence[Path],
    work: Path,
    options: Options,
    state: Mapping[str, Any],
    save: Save,
    display: PassProgress,
) -> FirstPass:
    """Parses all logs, from the resume point in `state` or from the beginning.

    Args:
        sources: The raw logs in order.
        work: The folder of the parts.
        options: The options of the run.
        state: The state that the journal has; empty at first.
        save: Saves a state durably.
        display: Shows the progress.

    Raises:
        ValueError: There are too many bad rows; the message names file and line of the first.
        OSError: A file cannot be read or written.
    """
    first_pass = restored(work, options, state, len(sources))
    bad = BadRows(
        options.max_bad_rows, first_pass.statistics.bad_rows, first_pass.statistics.first_bad_rows
    )
    bad.add(0, [])
    parser = _parser(sources, work, options)
    sizes = [path.stat().st_size for path in sources]
    with (
        Recorder(work, options, first_pass, save) as recorder,
        contextlib.closing(
            read_blocks(sources, options.schema, options.block_bytes, first_pass.resume_point)
        ) as blocks,
        contextlib.closing(_parsed(parser, blocks)) as parsed,
    ):
        last: TextBlock | None = None
        for block, rows in parsed:
            if last and last.file != block.file:
                recorder.finish(ResumePoint(block.file))
            bad.add(rows.bad_rows, rows.first_bad_rows)
            recorder.add(rows)
            first_pass.statistics.bad_rows = bad.count
            last = block
            if recorder.text_bytes(len(block.text)) >= options.part_bytes:
                recorder.finish(block.end)
            done = sum(sizes[: block.file]) + block.position
            display.advance(done, first_pass.statistics.rows)
        recorder.finish(ResumePoint(len(sources)))
    return first_pass


def _parser(sources: Sequence[Path], work: Path, options: Options) -> LogParser | ColumnParser:
    log = options.schema.columns
    if log is not None:
        return ColumnParser(sources, log, options.split, load_learned(work, log))
    tags = options.split.tags if options.schema.split is not None else None
    return LogParser(sources, options.schema, tags)


def _parsed(
    parser: LogParser | ColumnParser, blocks: Iterable[TextBlock]
) -> Generator[tuple[TextBlock, ParsedRows], None, None]:
    """Yields blocks with their rows, in order; threads parse ahead.

    An error of the reader comes after the rows of all blocks before it.
    """

    def tasks() -> Iterator[TextBlock | Exception]:
        try:
            yield from blocks
        except (ValueError, OSError) as error:
            yield error

    def parse(task: TextBlock | Exception) -> tuple[TextBlock, ParsedRows]:
        if isinstance(task, Exception):
            raise task
        return task, parser.parse(task)

    return read_ahead(parse, tasks(), lookahead=_PARSERS - 1, readers=_PARSERS)
