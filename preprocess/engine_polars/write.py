"""Pass two replaces provisional ids by final ones and writes each row to the files of its split.

It reads the parts of pass one and appends to the outputs. A part is removed when its rows are on
disk in their final form, so that the disk never holds more than the result and the remaining parts.
Rows to be shuffled go through buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.engine_polars.background_saver import BackgroundSaver
from preprocess.engine_polars.bag_words import BagWords, Int32, StoredRows
from preprocess.engine_polars.buckets import (
    bucket_file,
    bucket_files,
    bucket_words_file,
    prepare_buckets,
    scatter,
    sorted_bucket,
)
from preprocess.engine_polars.first_pass import rows_file, stored_rows, words_file
from preprocess.engine_polars.output_writers import Outputs, WritePlan, WriteProgress
from preprocess.outputs import Save
from preprocess.progress import PassProgress
from preprocess.rules import shuffle_key
from preprocess.splits import NAMES, TRAIN

_COPY_ROWS = 32768
_SCATTER_ROWS = 1 << 18  # enough that each bucket gets many of them in one write


def write(
    plan: WritePlan, state: Mapping[str, Any], save: Save, display: PassProgress
) -> WriteProgress:
    """Writes the data files into the work folder.

    Args:
        plan: The input.
        state: The state of pass two that the journal has; empty at first.
        save: Saves a state of pass two durably.
        display: Shows the progress, in rows.
    """
    written = WriteProgress(**state)
    if not state and plan.options.shuffle is not None:
        prepare_buckets(plan, written)
    outputs = Outputs(plan, written)
    saver = BackgroundSaver(save)
    try:
        done = sum(plan.parts[: written.parts])
        for part in range(written.parts, len(plan.parts)):
            for rows in _final_rows(plan, part):
                _distribute(plan, written, outputs, done, rows)
                done += len(rows.records)
                display.advance(done, done)
            written.parts += 1
            saver.save(
                written.snapshot(),
                outputs.sync,
                bucket_files(plan, written),
                [rows_file(plan.work, part), words_file(plan.work, part)],
            )
        for bucket in range(written.buckets, len(written.sizes)):
            if written.sizes[bucket]:
                saver.wait()
                outputs.append(TRAIN, sorted_bucket(plan, written, bucket))
            written.buckets += 1
            obsolete = [bucket_file(plan, bucket), bucket_words_file(plan, bucket)]
            saver.save(written.snapshot(), outputs.sync, [], obsolete)
    finally:
        saver.close()
        outputs.close()
    return written


def _final_rows(plan: WritePlan, part: int) -> Iterator[StoredRows]:
    """Yields the rows of a part with final ids in their records; those of bags are provisional."""
    most = _COPY_ROWS if plan.options.shuffle is None else _SCATTER_ROWS
    single = plan.ids[: plan.options.num_single]
    left = plan.parts[part]
    for rows in stored_rows(plan.work, part, plan.options, most):
        for column, ids in enumerate(single, 1 + plan.options.num_dense):
            if ids is not None:
                rows.records[:, column] = ids.take(rows.records[:, column])
        left -= len(rows.records)
        yield rows
    assert not left, "a part has its rows"


def _distribute(
    plan: WritePlan, written: WriteProgress, outputs: Outputs, first: int, rows: StoredRows
) -> None:
    """Writes consecutive rows, the first one with number `first`, to their splits or buckets."""
    layout = BagWords(plan.options)
    for split, chosen in _splits(plan, first, rows.records):
        records, words = layout.take(rows, chosen)
        final = StoredRows(records[:, : plan.options.width], words)
        if split == TRAIN and plan.options.shuffle is not None:
            numbers = np.arange(first, first + len(rows.records), dtype=np.uint64)[chosen]
            scatter(plan, written, shuffle_key(plan.options.shuffle, numbers), final)
        else:
            outputs.append(split, final)


def _splits(
    plan: WritePlan, first: int, records: Int32
) -> Iterator[tuple[str, slice | NDArray[np.intp]]]:
    """Yields each split with the indices of its rows in `records`."""
    if plan.splits is None:
        for tag, name in enumerate(NAMES):
            rows = np.flatnonzero(records[:, -1] == tag)
            if len(rows):
                yield name, rows
        return
    for part in plan.splits:
        start, stop = max(part.start - first, 0), min(part.stop - first, len(records))
        if start < stop:
            yield part.name, slice(start, stop)
