"""What to make of the logs: every choice that decides the bytes written, and a few that do not.

It must not know about flags' spelling on the command line, of engines or of files.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from preprocess.rules import Rules
from preprocess.schema import Schema, criteo_schema
from preprocess.splits import SplitRule


@dataclass(frozen=True)
class Options:
    """What to make of the logs.

    Attributes:
        rules: Meaning of the fields.
        schema: The fields.
        split: Which rows train, validate and test.
        shuffle: Seed of the order of the rows that train; None keeps that of the logs.
        columns: Write split folders, as split_bin.py does, instead of record files.
        pack_ids: With `columns`, pack the ids of a row into fewer words.
        dictionary: Folder of an earlier result whose ids are used; "" makes a new dictionary.
        max_bad_rows: So many bad rows are left out; with more the run fails.
        block_bytes: Text parsed at once; the output does not depend on it.
        part_bytes: Text after which progress is made durable; nor on this.
    """

    rules: Rules
    schema: Schema = field(default_factory=lambda: criteo_schema(13, 26))
    split: SplitRule = field(default_factory=SplitRule)
    shuffle: int | None = None
    columns: bool = False
    pack_ids: bool = False
    dictionary: str = ""
    max_bad_rows: int = 0
    block_bytes: int = 16 << 20
    part_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: Naming the option, what was expected and what was found.
        """
        if self.max_bad_rows < 0:
            raise ValueError(f"--max_bad_rows: expected 0 or more, found {self.max_bad_rows}")
        if self.pack_ids and not self.columns:
            raise ValueError("--pack_ids: expected with --columns, found alone; add --columns")
        if self.shuffle is not None and not -(2**63) <= self.shuffle < 2**63:
            raise ValueError(f"--shuffle: expected a 64-bit seed, found {self.shuffle}")

    @property
    def num_dense(self) -> int:
        """Dense columns of a record."""
        return len(self.schema.dense)

    @property
    def num_categorical(self) -> int:
        """Categorical columns of a record."""
        return len(self.schema.categorical)

    @property
    def width(self) -> int:
        """int32 numbers in a record."""
        return 1 + self.num_dense + self.num_categorical

    def identity(self, engine: str) -> dict[str, str]:
        """What must not change between the beginning of a run and its continuation, by flag."""
        rules = self.rules
        details = repr((self.schema, rules.lowest_by_column, rules.thresholds, rules.moduli))
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
        return {flag: str(value) for flag, value in choices.items()}
