"""Exports the tables of a checkpoint as Parquet or safetensors, one file per table.

Holds a few pieces of a table at a time, and gives a file its name when it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.known_rows import KnownRows
from dlrm.checkpoint.manifest import DENSE_FILE, ROWS, Manifest, is_weight, read_manifest
from dlrm.checkpoint.safetensors_file import BLOCK_BYTES, TensorReader, TensorWriter, write_tensors
from dlrm.checkpoint.table_reader import TableReader
from dlrm.formats import atomic_files
from dlrm.formats.quantities import size_text

PIECE_BYTES = 4 << 20  # written at a time; the writer of Parquet holds some ten of them
MOST_BYTES = 256 << 20  # read at a time, however many ranks there were

Rows = NDArray[np.float32]


class Table:
    """One table of a checkpoint, read in pieces by id.

    Args:
        reader: Reads the rows of the checkpoint.
        first_key: The key of id 0.
        ids: Number of ids.
        known: The keys of a dynamic table that have a row, int64 [n], ascending; None where every
            id has one.

    Attributes:
        rows: Number of rows.
        width: Number of values in a row.
    """

    def __init__(
        self,
        reader: TableReader,
        first_key: int,
        ids: int,
        known: NDArray[np.int64] | None = None,
    ) -> None:
        self._reader = reader
        self._first_key = first_key
        self._known = known
        self.rows = ids if known is None else len(known)
        self.width = reader.width
        # The reader fetches whole blocks from each rank's file: pieces that take less than a block
        # of each read the same blocks again and again.
        piece = max(PIECE_BYTES, min(reader.ranks * BLOCK_BYTES, MOST_BYTES))
        self._piece_rows = max(1, piece // (4 * self.width))

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        """Yields pieces in order: the first id of each and its rows, float32 [n, width].

        Every id must have a row.
        """
        assert self._known is None, "ids without a row lie between those with one"
        for first, last in self._pieces():
            yield first, self._reader.read_keys(self._first_key + first, self._first_key + last)

    def name_of(self, row: int) -> str:
        """What a row is called in a message, where every id has one."""
        return f"id {row}"

    def with_ids(self) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Yields pieces in order: ids int64 [n], ascending, and their rows, float32 [n, width]."""
        if self._known is None:
            for first, rows in self:
                yield np.arange(first, first + len(rows), dtype=np.int64), rows
            return
        for first, last in self._pieces():
            keys = self._known[first:last]
            yield keys - self._first_key, self._reader.read_seen(keys)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Cuts the rows into pieces [first, last)."""
        for first in range(0, self.rows, self._piece_rows):
            yield first, min(first + self._piece_rows, self.rows)


def export(
    checkpoint: Path,
    outdir: Path,
    format_name: str,
    tables: Sequence[int] | None,
    on_message: Callable[[str], None],
) -> None:
    """Writes tables as `table_NNN.<format>`, and the dense weights as `dense.safetensors`.

    Every block is checked while it is read. What an optimizer keeps is left out.

    Args:
        checkpoint: The checkpoint to export.
        outdir: The directory to write; created if missing.
        format_name: One of `FORMATS`.
        tables: The tables to export; None for all.
        on_message: Called with a line for each file that is complete.

    Raises:
        ValueError: The checkpoint is damaged, has no such table, or a file would be overwritten.
        OSError: A file cannot be read or written.
    """
    manifest = read_manifest(checkpoint)
    if manifest.model.dynamic and format_name == "safetensors":
        raise ValueError(
            f"{checkpoint}: in safetensors a row's number is its id: expected a row for every id, "
            "found those of the ids that occurred alone (--embedding=dynamic); set --format=parquet"
        )
    sizes = manifest.model.vocab_sizes
    chosen = range(len(sizes)) if tables is None else tables
    for table in chosen:
        if not 0 <= table < len(sizes):
            raise ValueError(
                f"--tables: expected numbers from 0 to {len(sizes) - 1}, found {table}"
            )
    paths = {table: outdir / f"table_{table:03d}.{format_name}" for table in chosen}
    dense = outdir / DENSE_FILE
    # Together with files of another checkpoint, these would form a model that was never trained.
    for path in (*paths.values(), dense):
        if path.exists():
            raise ValueError(f"{path}: already exists; remove it, or choose another OUTDIR")
    outdir.mkdir(parents=True, exist_ok=True)
    with TableReader(checkpoint, manifest) as reader:
        known = KnownRows(reader, manifest) if reader.dynamic else None
        for table, path in paths.items():
            keys = None if known is None else known.keys_of(table)
            source = Table(reader, sum(sizes[:table]), sizes[table], keys)
            with atomic_files.whole_file(path) as unfinished:
                FORMATS[format_name](unfinished, source)
            on_message(f"{path}: {source.rows:,} rows, {size_text(path.stat().st_size)}")
    if DENSE_FILE in manifest.files:
        with atomic_files.whole_file(dense) as unfinished:
            _copy_dense(checkpoint, manifest, unfinished)
        on_message(f"{dense}: {size_text(dense.stat().st_size)}")


def _write_parquet(path: Path, table: Table) -> None:
    """Columns `id` int64 and `vector`, a fixed-size list of float32, in small row groups."""
    import polars as pl
    from polars.io.plugins import register_io_source

    schema: dict[str, Any] = {"id": pl.Int64, "vector": pl.Array(pl.Float32, table.width)}
    group = max(1, PIECE_BYTES // (4 * table.width))

    failures: list[Exception] = []

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        try:
            for ids, rows in table.with_ids():
                for start in range(0, len(rows), group):
                    piece = slice(start, start + group)
                    part = rows[piece].copy()  # a view would keep all of `rows`
                    yield pl.DataFrame({"id": ids[piece], "vector": part}, schema=schema)
        except (ValueError, OSError) as error:
            failures.append(error)
            raise

    try:
        register_io_source(frames, schema=schema).sink_parquet(
            path,
            compression="uncompressed",  # the low bits of weights are noise
            row_group_size=group,
        )
    except pl.exceptions.PolarsError as error:
        # Polars 1 turns an error that `frames` raises into one of Polars' types.
        raise failures[0] if failures else OSError(f"{path}: {error}") from None


def _write_safetensors(path: Path, table: Table) -> None:
    """One tensor, `rows` float32 [rows, width]: the row of an id is its number."""
    spec = np.dtype("<f4"), (table.rows, table.width)
    with TensorWriter(path, {ROWS: spec}) as writer:
        for _, rows in table:
            writer.write(rows)
        writer.finish()


FORMATS: dict[str, Callable[[Path, Table], None]] = {
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
}


def _copy_dense(checkpoint: Path, manifest: Manifest, path: Path) -> None:
    """Copies the weights, without the state of an optimizer."""
    with TensorReader(checkpoint / DENSE_FILE, manifest.files[DENSE_FILE]) as reader:
        write_tensors(path, {name: reader.read(name) for name in reader.tensors if is_weight(name)})
