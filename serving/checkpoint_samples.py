"""Samples of a split folder with the rows of a checkpoint that they name, piece by piece.

Rows are read from the checkpoint once, however often they are named; rows that no sample names are
not kept. What is computed with the vectors is the caller's concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.known_rows import KnownRows
from dlrm.checkpoint.manifest import Manifest, ModelShape
from dlrm.checkpoint.safetensors_file import BLOCK_BYTES
from dlrm.checkpoint.table_reader import TableReader
from dlrm.data.batch import Source
from dlrm.data.decode import check_ids
from dlrm.data.split_files import SplitSource
from dlrm.distributed.sharding import key_offsets
from dlrm.formats.bags import BagLayout
from serving.id_columns import NO_ID, IdColumns, SampleIds

PIECE_SAMPLES = 4096

_READ_BLOCKS = 4  # blocks of each rank's file that are read at a time

Floats = NDArray[np.float32]
Piece = tuple[int, int]  # first sample, and the one after the last


def check_fit(folder: Path, source: Source, model: ModelShape) -> None:
    """Checks that data and model belong together.

    Args:
        folder: The folder of the data, for the error message.
        source: The data.
        model: The shape of the model.

    Raises:
        ValueError: The data has other dense columns or tables than the model.
    """
    bags = source.bag_layout or BagLayout((), ())
    for part, expected, found in (
        ("dense columns", model.num_dense, source.num_dense),
        ("tables", len(model.vocab_sizes), len(source.vocab_sizes)),
        *(
            (f"rows of table {table}", *sizes)
            for table, sizes in enumerate(zip(model.vocab_sizes, source.vocab_sizes))
        ),
        ("bags", ",".join(model.pooling) or "none", ",".join(bags.pooling) or "none"),
        ("weights", model.weighted, bags.weights),
    ):
        if expected != found:
            raise ValueError(
                f"{folder}: expected {expected} {part}, as the model has, found {found}; name "
                "data of the preprocessing that the model was trained on"
            )


class ModelSamples:
    """A split folder whose samples fit a model.

    Args:
        folder: The split folder.
        model: The shape of the model.

    Attributes:
        folder: The split folder.
        num_samples: Number of samples, at least one.
        columns: The columns of their ids, C of them.
        fingerprint: The fingerprint of the samples.

    Raises:
        ValueError: The folder is malformed, holds no sample or does not fit the model.
        OSError: A file cannot be read.
    """

    def __init__(self, folder: Path, model: ModelShape) -> None:
        self._source = SplitSource(folder)
        self.folder = folder
        self.num_samples, self.fingerprint = self._source.num_samples, self._source.fingerprint
        self._sizes = model.vocab_sizes
        self.columns = IdColumns.of_model(model)
        check_fit(folder, self._source, model)
        if not self.num_samples:
            raise ValueError(f"{folder}: expected samples, found none; name another split folder")

    def read(self, start: int, stop: int) -> tuple[Floats, SampleIds, Floats]:
        """Reads samples [start, stop): dense [n, D], ids [n, C] and labels [n].

        Raises:
            ValueError: A value is bad, or an id is outside its table.
            OSError: A file cannot be read.
        """
        dense, ids, labels = self._source.read(start, stop)
        check_ids(self.folder, start, ids, self._sizes)
        return dense, self.columns.lay_out(ids), labels

    def read_keys(self, start: int, stop: int) -> NDArray[np.int64]:
        """Reads the keys of samples [start, stop), int64 [n, C], `NO_ID` where there is no id.

        Raises:
            ValueError: An id is outside its table.
            OSError: A file cannot be read.
        """
        ids = self._source.read_ids(start, stop)
        check_ids(self.folder, start, ids, self._sizes)
        return self.keys_of(self.columns.lay_out(ids))

    def keys_of(self, ids: SampleIds) -> NDArray[np.int64]:
        """The keys of ids [n, C], int64 [n, C], `NO_ID` where there is no id."""
        keys = ids.ids + key_offsets(self._sizes)[self.columns.tables]
        return np.where(ids.ids == NO_ID, NO_ID, keys) if self.columns.bags else keys

    def pieces(self, wanted: int) -> list[Piece]:
        """Ranges of samples at equal distances, `wanted` samples in all, or all that there are."""
        wanted = min(wanted, self.num_samples)
        count = -(-wanted // PIECE_SAMPLES)
        sizes = [wanted * (n + 1) // count - wanted * n // count for n in range(count)]
        starts = [self.num_samples * n // count for n in range(count)]
        return [(start, start + size) for start, size in zip(starts, sizes)]

    def pieces_of(self, start: int, stop: int) -> list[Piece]:
        """Samples [start, stop) cut into pieces."""
        starts = range(start, stop, PIECE_SAMPLES)
        return [(first, min(first + PIECE_SAMPLES, stop)) for first in starts]


class CheckpointSamples:
    """Pieces of samples, with the vectors that a checkpoint's tables hold for them.

    Args:
        checkpoint: The checkpoint, of any number of ranks.
        manifest: Its manifest.
        samples: The samples.
        pieces: Which of them to use.

    Attributes:
        rows: The rows that the pieces name, each once, float32 [n, W].

    Raises:
        ValueError: A sample is bad, or the checkpoint is damaged.
        OSError: A file cannot be read.
    """

    def __init__(
        self, checkpoint: Path, manifest: Manifest, samples: ModelSamples, pieces: Sequence[Piece]
    ) -> None:
        self._samples, self._pieces = samples, pieces
        self._pooling = manifest.model.pooling
        named = np.unique(
            np.concatenate([np.unique(samples.read_keys(*piece)) for piece in pieces])
        )
        self._keys = named[named != NO_ID]
        self.rows = _read_rows(checkpoint, manifest, self._keys)

    def __iter__(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yields dense [n, D], vectors [n, T, W] and labels [n] of each piece, float32."""
        for piece in self._pieces:
            dense, ids, labels = self._samples.read(*piece)
            yield dense, self.vectors(self.places(ids)), labels

    def places(self, ids: SampleIds) -> SampleIds:
        """Where in `rows` those of ids [n, C] lie, int64 [n, C]; the pieces name the ids."""
        keys = self._samples.keys_of(ids)
        places = np.searchsorted(self._keys, keys)
        return SampleIds(np.where(keys == NO_ID, NO_ID, places), ids.weights)

    def vectors(self, places: SampleIds) -> Floats:
        """The rows at places [n, C], of bags their sums or means, float32 [n, T, W]."""
        columns = self._samples.columns
        if not columns.bags:
            return self.rows[places.ids]
        vectors = np.empty((len(places.ids), len(columns.counts), self.rows.shape[1]), np.float32)
        for table, kind in enumerate(self._pooling):
            part = columns.of_table(table)
            there = places.ids[:, part] != NO_ID  # [n, ids of the table]
            factors = there.astype(np.float32)
            if places.weights is not None:
                factors *= places.weights[:, part]
            if kind == "mean":
                factors /= np.maximum(there.sum(axis=1, keepdims=True), 1)
            rows = self.rows[np.where(there, places.ids[:, part], 0)]
            np.einsum("nc,ncw->nw", factors, rows, out=vectors[:, table])
        return vectors


def _read_rows(checkpoint: Path, manifest: Manifest, keys: NDArray[np.int64]) -> Floats:
    """The rows of ascending keys, float32 [n, W]."""
    rows = np.empty((len(keys), manifest.model.embedding_dim), np.float32)
    # Whole blocks are read and checked anyway. A range of keys is in consecutive rows of each file.
    span = max(1, _READ_BLOCKS * BLOCK_BYTES // (rows.itemsize * rows.shape[1])) * manifest.ranks
    with TableReader(checkpoint, manifest) as reader:
        if reader.dynamic:
            return KnownRows(reader, manifest).read(keys, span)
        for number in np.unique(keys // span):
            first = int(number) * span
            values = reader.read_keys(first, min(first + span, reader.keys))
            begin, end = np.searchsorted(keys, [first, first + span])
            rows[begin:end] = values[keys[begin:end] - first]
    return rows
