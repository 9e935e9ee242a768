"""The tables of a checkpoint in memory, as float32, int8 or int4 rows, and the lookup of vectors.

It must not know models or requests.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.export import Table
from dlrm.checkpoint.manifest import Manifest
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed.host_memory import free_host_memory
from dlrm.formats.quantities import memory_text
from serving.row_encoding import FLOAT32, INT4_ROWS, INT8_ROWS, decode, encode, stored_spec

ENCODINGS = {"float32": FLOAT32, "int8": INT8_ROWS, "int4": INT4_ROWS}
"""How rows can be kept, by the name that users give; the last two with scale and bias a row."""


class EncodedTable:
    """One table.

    Args:
        name: What its rows are, for error messages.
        encoding: How they are stored, as `row_encoding` has it.
        stored: The stored rows, [rows, values].
    """

    def __init__(self, name: str, encoding: str, stored: NDArray[Any]) -> None:
        self._name, self._encoding, self._stored = name, encoding, stored

    def lookup(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Returns the vectors of ids, float32 [n, W].

        Raises:
            ValueError: An id is outside the table.
        """
        bad = (ids < 0) | (ids >= len(self._stored))
        if bad.any():
            raise ValueError(
                f"{self._name}: expected an id from 0 to {len(self._stored) - 1:,}, found "
                f"{ids[bad.argmax()]}; name the data that the model was trained on"
            )
        return decode(self._encoding, self._stored[ids])


def read_tables(
    checkpoint: Path, manifest: Manifest, names: tuple[str, ...], encoding: str
) -> list[EncodedTable]:
    """Reads all tables, a piece at a time: memory holds the encoded rows and little else.

    Args:
        checkpoint: The checkpoint, of any number of ranks.
        manifest: Its manifest.
        names: What the rows of each table are.
        encoding: One of `ENCODINGS`.

    Raises:
        ValueError: The checkpoint is damaged, has a value that is not finite or other tables, or
            the memory does not suffice.
        OSError: A file cannot be read.
    """
    sizes, width = manifest.model.vocab_sizes, manifest.model.embedding_dim
    if len(sizes) != len(names):
        raise ValueError(
            f"{checkpoint}: expected tables of {', '.join(names)}, found {len(sizes)}; name a "
            "checkpoint that python3 -m dlrm_v3.train wrote"
        )
    kind = ENCODINGS[encoding]
    if kind == INT4_ROWS and width % 2:
        raise ValueError(f"{checkpoint}: int4 rows: expected an even width, found {width}")
    dtype, values = stored_spec(kind, width)
    need, free = sum(sizes) * dtype.itemsize * values, free_host_memory()
    if free is not None and need > free:
        raise ValueError(
            f"{checkpoint}: expected {memory_text(need)} of free memory for the tables as "
            f"{encoding}, found {memory_text(free)}; keep them in fewer bits by --sparse-quant"
        )
    tables = []
    with TableReader(checkpoint, manifest) as reader:
        for name, size, first_key in zip(names, sizes, [0, *accumulate(sizes)]):
            stored = np.empty((size, values), dtype)
            for first, rows in Table(reader, first_key, size):
                # A sum is finite only if all its terms are; so no array of flags is made.
                if not np.isfinite(rows.sum(dtype=np.float64)):
                    row = first + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
                    raise ValueError(
                        f"{checkpoint}: {name}: row {row}: expected finite values, found others; "
                        "name a checkpoint from before it diverged"
                    )
                stored[first : first + len(rows)] = encode(kind, rows)
            tables.append(EncodedTable(name, kind, stored))
    return tables
