"""The scorer: from dense features and ids to logits, by the C++ library of `serving/core`.

It opens an artifact and checks what users pass; all arithmetic is the library's. Threads may share
a scorer. NumPy is all that it imports, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving import artifact as files
from serving import scorer_library as library
from serving.artifact import Artifact, read_artifact, verify_artifact
from serving.scorer_inputs import checked, refuse
from serving.scorer_weights import MappedWeights

Logits = NDArray[np.float32]


class Lookups(NamedTuple):
    """How many rows were read.

    Attributes:
        hot: From memory.
        cold: From the mapped file.
    """

    hot: int
    cold: int


class Scorer:
    """An artifact that answers; a context manager. `Scorer.open` makes it.

    Args:
        artifact: The artifact.
        hot_share: The share of the rows' bytes that goes to memory.
        threads: Number of threads of one call, the calling one included.
        level: The instruction set, a name of `scorer_library.LEVELS`.

    Attributes:
        artifact: The artifact.
    """

    def __init__(self, artifact: Artifact, hot_share: float, threads: int, level: str) -> None:
        self.artifact = artifact
        self._library = library.load()
        self._weights = MappedWeights(artifact, hot_share)
        self._fields = np.array(artifact.packing.fields, np.int32)
        handle = self._library.scorer_open(
            ctypes.byref(self._weights.model), library.LEVELS[level], threads
        )
        if not handle:
            raise ValueError(
                f"{artifact.folder}: expected memory for {hot_share:.0%} of its rows, found too "
                "little; set a smaller --hot_share, which needs an export with --row_frequencies"
            )
        self._handle: int | None = handle
        self._close = weakref.finalize(self, self._library.scorer_close, handle)
        self._state = threading.Condition()
        self._calls = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        hot_share: float = 1.0,
        threads: int | None = None,
        verify: bool = True,
        level: str | None = None,
    ) -> Scorer:
        """Opens an artifact.

        Args:
            folder: The folder of the artifact.
            hot_share: The share of the rows' bytes that is read into memory, most used rows first;
                the others are read from the file when they are needed.
            threads: Number of threads of one call; None for all cores of this process.
            verify: Whether every byte is compared with its checksum first.
            level: The instruction set, a name of `scorer_library.LEVELS`; None for the best.

        Raises:
            ValueError: The artifact is damaged or does not fit the settings.
            OSError: A file cannot be read, or the library is not built.
        """
        folder = Path(folder)
        artifact = read_artifact(folder)
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        if threads < 1:
            raise ValueError(f"threads: expected 1 or more, found {threads}")
        levels = library.levels()
        if level is None:
            level = levels[-1]
        if level not in levels:
            raise ValueError(f"level: expected one of {', '.join(levels)}, found {level!r}")
        if verify:
            used = (
                *(files.TABLES_FILE, files.ROW_ORDER_FILE),
                *(files.DENSE_FILE, files.DICTIONARY_FILE),
            )
            verify_artifact(artifact, [name for name in used if name in artifact.files])
        return cls(artifact, hot_share, threads, level)

    def __enter__(self) -> Scorer:
        """Returns itself; leaving the context closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for calls in other threads and frees all memory; later calls raise `ValueError`."""
        with self._state:
            self._handle = None
            self._state.wait_for(lambda: self._calls == 0)
        self._close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[int]:
        """The library's handle, which is not closed meanwhile."""
        with self._state:
            handle = self._handle
            if handle is None:
                raise ValueError("expected an open scorer, found one that is closed")
            self._calls += 1
        try:
            yield handle
        finally:
            with self._state:
                self._calls -= 1
                if not self._calls:
                    self._state.notify_all()

    @property
    def _num_dense(self) -> int:
        return int(self._weights.model.num_dense)

    @property
    def _tables(self) -> int:
        return int(self._weights.model.tables)

    def score(self, dense: NDArray[Any], ids: NDArray[Any]) -> Logits:
        """Scores samples.

        Args:
            dense: float32 [B, D], as the model was trained with them.
            ids: int32 [B, T].

        Returns:
            The logits, float32 [B].

        Raises:
            ValueError: A type or shape is not the model's, an id is not in its table, or a dense
                value is not finite.
        """
        dense = checked("dense", dense, np.float32, self._num_dense)
        ids = checked("ids", ids, np.int32, self._tables, rows_of=dense)
        return self._score(dense, ids)

    def score_packed(self, dense: NDArray[Any], words: NDArray[Any]) -> Logits:
        """Scores samples whose ids share words, as `artifact.packing` says.

        Args:
            dense: float32 [B, D], as the model was trained with them.
            words: int32 [B, words].

        Returns:
            The logits, float32 [B].

        Raises:
            ValueError: As for `score`.
        """
        dense = checked("dense", dense, np.float32, self._num_dense)
        width = self.artifact.packing.words
        words = checked("words", words, np.int32, width, rows_of=dense)
        ids = np.empty((len(words), self._tables), np.int32)
        self._library.scorer_unpack(
            *(words.ctypes.data, len(words), width),
            *(self._fields.ctypes.data, self._tables, ids.ctypes.data),
        )
        return self._score(dense, ids)

    def score_raw(self, dense: NDArray[Any], values: NDArray[Any]) -> Logits:
        """Scores samples as they stand in a log, by the dictionary of the artifact.

        Args:
            dense: int32 [B, D], 0 where one is missing.
            values: int64 [B, T], the number of each field, -1 where it is missing.

        Returns:
            The logits, float32 [B].

        Raises:
            ValueError: As for `score`, or the artifact has no dictionary.
        """
        rules = self.artifact.dictionary
        if rules is None:
            raise ValueError(
                f"{self.artifact.folder}: expected a dictionary for raw values, found none; export "
                "it with --dictionary"
            )
        dense = checked("dense", dense, np.int32, self._num_dense)
        values = checked("values", values, np.int64, self._tables, rows_of=dense)
        lowest = np.array(rules["lowest_dense"], np.int32)
        numbers = np.maximum(dense, lowest).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # an error names the value
            numbers = np.log(numbers + np.float32(rules["dense_log_offset"]))
        ids = np.empty(values.shape, np.int32)
        fault = library.LibraryFault()
        with self._using() as handle:
            bad = self._library.scorer_look_up(
                handle, values.ctypes.data, len(values), ids.ctypes.data, ctypes.byref(fault)
            )
        if bad:
            sample, table = int(fault.sample), int(fault.column)
            found = values[sample, table]
            refuse(bad, self.artifact.model.vocab_sizes, f"sample {sample}", table, found)
        return self._score(numbers, ids)

    def score_candidates(
        self,
        dense: NDArray[Any],
        user_ids: NDArray[Any],
        item_ids: NDArray[Any],
        user_tables: Sequence[int],
    ) -> Logits:
        """Scores many candidates for one user, whose part is computed once.

        Args:
            dense: float32 [D], of the user.
            user_ids: int32 [U], for the tables `user_tables`.
            item_ids: int32 [N, T - U], for the other tables in their order.
            user_tables: The tables that are looked up for the user.

        Returns:
            The logits, float32 [N]: those of `score` to rounding.

        Raises:
            ValueError: As for `score`.
        """
        tables = np.array([int(table) for table in user_tables], np.int32)
        known = set(range(self._tables))
        if len(set(tables.tolist())) != len(tables) or not known.issuperset(tables.tolist()):
            raise ValueError(
                f"user_tables: expected different tables from 0 to {self._tables - 1}, found "
                f"{tables.tolist()}"
            )
        dense = checked("dense", dense, np.float32, self._num_dense, one=True)
        user_ids = checked("user_ids", user_ids, np.int32, len(tables), one=True)
        item_ids = checked("item_ids", item_ids, np.int32, self._tables - len(tables))
        logits = np.empty(len(item_ids), np.float32)
        fault = library.LibraryFault()
        with self._using() as handle:
            bad = self._library.scorer_candidates(
                *(handle, dense.ctypes.data, tables.ctypes.data, user_ids.ctypes.data, len(tables)),
                *(item_ids.ctypes.data, len(item_ids), logits.ctypes.data, ctypes.byref(fault)),
            )
        if bad:
            sample, column = int(fault.sample), int(fault.column)
            found: Any = None
            if bad == library.BAD_ID and sample == library.USER:
                found = user_ids[tables.tolist().index(column)]
            elif bad == library.BAD_ID:
                items = sorted(known.difference(tables.tolist()))
                found = item_ids[sample, items.index(column)]
            elif bad == library.BAD_DENSE:
                sample, found = library.USER, dense[column]
            refuse(
                bad,
                self.artifact.model.vocab_sizes,
                "user" if sample == library.USER else f"candidate {sample}",
                column,
                found,
            )
        return logits

    def lookups(self) -> Lookups:
        """How many rows were read since the scorer was opened."""
        hot, cold = ctypes.c_int64(), ctypes.c_int64()
        with self._using() as handle:
            self._library.scorer_lookups(handle, ctypes.byref(hot), ctypes.byref(cold))
        return Lookups(hot.value, cold.value)

    def _score(self, dense: NDArray[Any], ids: NDArray[Any]) -> Logits:
        logits = np.empty(len(ids), np.float32)
        fault = library.LibraryFault()
        with self._using() as handle:
            bad = self._library.scorer_score(
                *(handle, dense.ctypes.data, ids.ctypes.data, len(ids)),
                *(logits.ctypes.data, ctypes.byref(fault)),
            )
        if bad:
            sample, column = int(fault.sample), int(fault.column)
            found: Any = None
            if bad != library.NO_MEMORY:
                found = (dense if bad == library.BAD_DENSE else ids)[sample, column]
            refuse(bad, self.artifact.model.vocab_sizes, f"sample {sample}", column, found)
        return logits
