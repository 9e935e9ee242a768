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
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bags import Bags
from serving import artifact as files
from serving import scorer_library as library
from serving.artifact import Artifact, read_artifact, verify_artifact
from serving.id_columns import IdColumns, SampleIds
from serving.scorer_inputs import checked, checked_ids, refuse
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
        columns: The columns of a sample's ids, C of them: one of each table without bags.
    """

    def __init__(self, artifact: Artifact, hot_share: float, threads: int, level: str) -> None:
        self.artifact = artifact
        self.columns = IdColumns.of_model(artifact.model)
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
                *(files.TABLES_FILE, files.ROW_ORDER_FILE, files.KNOWN_IDS_FILE),
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

    def score(
        self,
        dense: NDArray[Any],
        ids: NDArray[Any] | Bags,
        weights: NDArray[Any] | None = None,
    ) -> Logits:
        """Scores samples.

        Args:
            dense: float32 [B, D], as the model was trained with them.
            ids: int32 [B, C], of bags as `columns` describes them; or `Bags`, with their weights.
            weights: float32 [B, C], a factor for each id, where the model takes weights.

        Returns:
            The logits, float32 [B].

        Raises:
            ValueError: A type or shape is not the model's, an id is not in its table, or a dense
                value or weight is not finite.
        """
        if isinstance(ids, Bags):
            ids, weights = self.columns.lay_out(ids)
        dense = checked("dense", dense, np.float32, self._num_dense)
        return self._score(dense, checked_ids("ids", ids, weights, self.columns, rows_of=dense))

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
        if self.columns.bags:
            raise ValueError("words: expected ids in columns, as the model takes bags, found words")
        dense = checked("dense", dense, np.float32, self._num_dense)
        width = self.artifact.packing.words
        words = checked("words", words, np.int32, width, rows_of=dense)
        ids = np.empty((len(words), self._tables), np.int32)
        self._library.scorer_unpack(
            *(words.ctypes.data, len(words), width),
            *(self._fields.ctypes.data, self._tables, ids.ctypes.data),
        )
        return self._score(dense, SampleIds(ids))

    def score_raw(
        self, dense: NDArray[Any], values: NDArray[Any], weights: NDArray[Any] | None = None
    ) -> Logits:
        """Scores samples as they stand in a log, by the dictionary of the artifact.

        Args:
            dense: int32 [B, D], 0 where one is missing.
            values: int64 [B, C], the number of each field, -1 where it is missing, and for what is
                left of a bag's columns.
            weights: As for `score`.

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
        values, weights = checked_ids("values", values, weights, self.columns, rows_of=dense)
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
            self._refuse(bad, fault, f"sample {fault.sample}", numbers)
        return self._score(numbers, SampleIds(ids, weights))

    def score_candidates(
        self,
        dense: NDArray[Any],
        user_ids: NDArray[Any],
        item_ids: NDArray[Any],
        user_tables: Sequence[int],
        user_weights: NDArray[Any] | None = None,
        item_weights: NDArray[Any] | None = None,
    ) -> Logits:
        """Scores many candidates for one user, whose part is computed once.

        Args:
            dense: float32 [D], of the user.
            user_ids: int32 [U], the columns of the tables `user_tables`.
            item_ids: int32 [N, C - U], those of the other tables in their order.
            user_tables: The tables that are looked up for the user.
            user_weights: float32 [U], where the model takes weights.
            item_weights: float32 [N, C - U], likewise.

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
        of_user = int(self.columns.counts[tables].sum())
        user = checked_ids(
            "user_ids", user_ids, user_weights, self.columns, width=of_user, one=True
        )
        of_items = self.columns.width - of_user
        items = checked_ids("item_ids", item_ids, item_weights, self.columns, width=of_items)
        logits = np.empty(len(items.ids), np.float32)
        fault = library.LibraryFault()
        with self._using() as handle:
            bad = self._library.scorer_candidates(
                *(handle, dense.ctypes.data, tables.ctypes.data, len(tables)),
                *map(library.address, (*user, *items)),
                *(len(items.ids), logits.ctypes.data, ctypes.byref(fault)),
            )
        if bad:
            is_user = bad == library.BAD_DENSE or fault.sample == library.USER
            where = "user" if is_user else f"candidate {fault.sample}"
            self._refuse(bad, fault, where, dense[None])
        return logits

    def lookups(self) -> Lookups:
        """How many rows were read since the scorer was opened."""
        hot, cold = ctypes.c_int64(), ctypes.c_int64()
        with self._using() as handle:
            self._library.scorer_lookups(handle, ctypes.byref(hot), ctypes.byref(cold))
        return Lookups(hot.value, cold.value)

    def _score(self, dense: NDArray[Any], ids: SampleIds) -> Logits:
        logits = np.empty(len(dense), np.float32)
        fault = library.LibraryFault()
        with self._using() as handle:
            bad = self._library.scorer_score(
                *(handle, dense.ctypes.data, *map(library.address, ids), len(dense)),
                *(logits.ctypes.data, ctypes.byref(fault)),
            )
        if bad:
            self._refuse(bad, fault, f"sample {fault.sample}", dense)
        return logits

    def _refuse(
        self, bad: int, fault: library.LibraryFault, where: str, dense: NDArray[Any]
    ) -> NoReturn:
        found = dense[fault.sample, fault.column] if bad == library.BAD_DENSE else fault.value
        refuse(bad, self.artifact.model.vocab_sizes, where, int(fault.column), found)
