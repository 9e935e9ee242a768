"""The options of a run: every choice that decides the bytes written, and a few that do not.

This module must not know about the command line, the engines or the files.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from dlrm.formats.bags import BagTable
from preprocess.rules import Rules
from preprocess.schema import Schema, criteo_schema
from preprocess.splits import SplitRule


@dataclass(frozen=True)
class Options:
    """How the logs are turned into a result.

    Attributes:
        rules: How fields become numbers and ids.
        schema: The fields of a row.
        split: Which rows are for training, validation and test.
        shuffle: The seed of the order of the training rows; None keeps the order of the logs.
        columns: Whether to write split folders, as split_bin.py does, instead of record files.
        pack_ids: Whether to pack the ids of a row into fewer words; only with `columns`.
        dictionary: The folder of an earlier result whose ids are used; "" makes new ids.
        append_day: Whether values that this dictionary lacks get the ids after its own; otherwise
            they get id 0.
        max_bad_rows: The number of bad rows that are skipped; one more is an error.
        block_bytes: Bytes of text parsed at once; the output does not depend on it.
        part_bytes: Bytes of text between two saved states; the output does not depend on it.
    """

    rules: Rules
    schema: Schema = field(default_factory=lambda: criteo_schema(13, 26))
    split: SplitRule = field(default_factory=SplitRule)
    shuffle: int | None = None
    columns: bool = False
    pack_ids: bool = False
    dictionary: str = ""
    append_day: bool = False
    max_bad_rows: int = 0
    block_bytes: int = 16 << 20
    part_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuses options that contradict each other.

        Raises:
            ValueError: An option is out of range or contradicts another; the message names it.
        """
        if self.max_bad_rows < 0:
            raise ValueError(f"--max_bad_rows: expected 0 or more, found {self.max_bad_rows}")
        if self.schema.columns is not None and not self.columns:
            raise ValueError(
                "--columns: expected with a schema of dense_type float32, because record files hold"
                " integers; add --columns"
            )
        if self.schema.columns is not None and self.rules.max_table_rows is not None:
            raise ValueError(
                "--max_table_rows: expected without a schema of dense_type float32, found"
                f" {self.rules.max_table_rows}; give hashed columns their modulo in the schema"
            )
        if self.rules.frequency_threshold and not self.dictionary_tables:
            raise ValueError(
                "--frequency_threshold: expected 0 where every column has ids: hash, which counts"
                f" nothing, found {self.rules.frequency_threshold}; leave it and threshold out, and"
                " let training count with --embedding=dynamic --admit_after=N"
            )
        assert self.dictionary or not self.append_day, "an earlier day to append to"
        if self.pack_ids and not self.columns:
            raise ValueError("--pack_ids: expected with --columns, found alone; add --columns")
        if self.shuffle is not None and not -(2**63) <= self.shuffle < 2**63:
            raise ValueError(f"--shuffle: expected a 64-bit seed, found {self.shuffle}")

    @property
    def num_dense(self) -> int:
        """Number of dense columns of a record."""
        return len(self.schema.dense)

    @property
    def num_categorical(self) -> int:
        """Number of categorical columns of a record."""
        return len(self.schema.categorical)

    @property
    def bags(self) -> tuple[BagTable, ...]:
        """The tables that hold bags of ids, the last ones; a record has their numbers of ids."""
        return self.schema.columns.bag_tables if self.schema.columns is not None else ()

    @property
    def dictionary_tables(self) -> tuple[int, ...]:
        """The tables whose ids a dictionary numbers; those of the others are hashes."""
        return tuple(t for t in range(self.num_categorical) if t not in self.rules.hashed)

    @property
    def first_sizes(self) -> list[int]:
        """The rows of each table before a value has got an id."""
        rules = self.rules
        return [
            (rules.modulus(t) or 0) if t in rules.hashed else rules.first_id(t)
            for t in range(self.num_categorical)
        ]

    @property
    def has_dictionary(self) -> bool:
        """Whether a result has a folder `dictionary`: of ids, or of statistics of columns."""
        return bool(self.dictionary_tables) or self.schema.columns is not None

    @property
    def num_single(self) -> int:
        """Number of tables that hold one id of each row, the first ones."""
        return self.num_categorical - len(self.bags)

    @property
    def width(self) -> int:
        """Number of int32 values in a record."""
        return 1 + self.num_dense + self.num_categorical

    @property
    def dictionary_flag(self) -> str:
        """The flag that named the earlier result, for messages."""
        return f"--{'append_day' if self.append_day else 'dictionary'}={self.dictionary}"

    def identity(self, engine: str) -> dict[str, str]:
        """Returns, by flag, what must be the same when an unfinished run is continued."""
        rules = self.rules
        by_column = (rules.lowest_by_column, rules.thresholds, rules.moduli, rules.hashed)
        details = repr((self.schema, *by_column))
        choices: dict[str, object] = {
            "--engine": engine,
            "--rules": rules.name,
            "--frequency_threshold": rules.frequency_threshold,
            "--max_table_rows": rules.max_table_rows,
            "--num_dense": self.num_dense,
            "--num_categorical": self.num_categorical,
            "--schema": (rules.by_count, rules.missing_is_value, zlib.crc32(details.encode())),
            "--split": self.split.by,
            "--test_fraction": self.split.test,
            "--validation_fraction": self.split.validation,
            "--shuffle": self.shuffle,
            "--columns": self.columns,
            "--pack_ids": self.pack_ids,
            "--dictionary": self.dictionary,
        }
        if self.append_day:
            choices["--append_day"] = choices.pop("--dictionary")
        return {flag: str(value) for flag, value in choices.items()}
