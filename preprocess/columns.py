"""The columns of a log of any kind, and the rule by which each becomes a label, a float or an id.

These are plain descriptions. `preprocess.column_schema` reads them from a schema file, and
`preprocess.row_expressions` turns them into expressions; this module must not know about either.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlrm.formats.bags import BagTable
from preprocess.schema import (
    CATEGORICAL,
    DENSE,
    FLOAT,
    INTEGER,
    LABEL,
    SPLIT,
    TEXT,
    LogField,
    Schema,
)

NUMBER, HOUR, WEEKDAY = "number", "hour", "weekday"
VALUE, HASH = "value", "hash"
PLAIN, LOG, STANDARDISE, QUANTILE = "none", "log", "standardise", "quantile"
MEAN, MEDIAN, REFUSE = "mean", "median", "refuse"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNIT_SEPARATOR = "\x1f"
"""What separates the elements of a Parquet list in the text that is made of it."""


@dataclass(frozen=True)
class LabelColumn:
    """The column that decides the label.

    Attributes:
        column: Its name.
        above: The label is 1 for numbers above this one; None if the texts below decide.
        positive: The texts of label 1.
        negative: The texts of label 0; empty if every other text has label 0.
    """

    column: str
    above: float | None = None
    positive: tuple[str, ...] = ("1", "1.0")
    negative: tuple[str, ...] = ("0", "0.0")


@dataclass(frozen=True)
class DenseColumn:
    """One dense feature, computed in float64 and stored as float32.

    Attributes:
        name: The name of the feature.
        column: The column that it is computed from.
        kind: "number", or "hour" or "weekday" (0 is Monday) of a time in UTC.
        transform: "none", "log", "standardise" or "quantile".
        offset: With "log", the feature is ln(x + offset).
        clip: The lowest and the highest x; smaller and larger ones become these.
        buckets: With "quantile", the number of buckets; the feature is the share of the inner
            edges that x reaches.
        missing: The x of a row without one: a number, "mean" or "median" of the training rows, or
            "refuse", by which the row is bad.
    """

    name: str
    column: str
    kind: str = NUMBER
    transform: str = PLAIN
    offset: float = 1.0
    clip: tuple[float, float] | None = None
    buckets: int = 0
    missing: float | str = 0.0

    @property
    def learns(self) -> bool:
        """Whether the feature needs statistics of the training rows."""
        return self.transform in (STANDARDISE, QUANTILE) or self.missing in (MEAN, MEDIAN)


@dataclass(frozen=True)
class BagRule:
    """How a field becomes a bag of ids.

    Attributes:
        separator: The text between two ids; "" if the field is a JSON list.
        max_ids: The most ids of a bag; of more, the first ones are kept.
        pooling: "sum" or "mean".
        weights: The column of the ids' weights, in the same form; "" without weights.
    """

    separator: str
    max_ids: int
    pooling: str
    weights: str = ""


@dataclass(frozen=True)
class CategoryColumn:
    """One categorical feature.

    Attributes:
        name: The name of the feature.
        column: The column that it is computed from.
        kind: "value": each text is a value of its own; "text": the CRC-32 of its UTF-8 bytes;
            "integer" (32 bits) or "hex" (at most 8 digits): the number itself; "hour" or "weekday"
            of a time; "hash": XXH64 of the text's UTF-8 bytes modulo `modulo`.
        bag: How the field becomes a bag of ids; None if it is one.
        modulo: With "hash", the number of ids.
    """

    name: str
    column: str
    kind: str = VALUE
    bag: BagRule | None = None
    modulo: int = 0

    @property
    def any_text(self) -> bool:
        """Whether every text is good."""
        return self.kind in (VALUE, TEXT, HASH)


@dataclass(frozen=True)
class LogColumns:
    """A log whose rows are text, JSON objects or rows of a Parquet file.

    Attributes:
        names: The columns in the order of the file; of JSON and Parquet, those that are used.
        format: One of "tsv", "csv", "parquet" and "jsonl".
        delimiter: The character between fields.
        header: Whether the first line of each file names the columns.
        quoted: Whether a field may be in double quotes, within which two stand for one.
        trim: Whether blanks around a field are dropped.
        absent: The texts that stand for no value; the empty text always does.
        label: The column of the label.
        dense: The dense features, in the order of the record.
        categories: The categorical features, in that order; those with bags come last.
        split: The column that decides the split of a row; None if its position does.
    """

    names: tuple[str, ...]
    format: str
    delimiter: str
    header: bool
    quoted: bool
    trim: bool
    absent: tuple[str, ...]
    label: LabelColumn
    dense: tuple[DenseColumn, ...]
    categories: tuple[CategoryColumn, ...]
    split: str | None = None

    @property
    def learns(self) -> bool:
        """Whether a pass over the logs must learn texts or statistics before rows can be made."""
        return bool(self.text_tables) or any(column.learns for column in self.dense)

    @property
    def text_tables(self) -> tuple[int, ...]:
        """The tables whose values are texts of their own."""
        return tuple(t for t, column in enumerate(self.categories) if column.kind == VALUE)

    @property
    def bag_tables(self) -> tuple[BagTable, ...]:
        """The tables that hold bags of ids."""
        return tuple(
            BagTable(table, column.bag.pooling, column.bag.max_ids, bool(column.bag.weights))
            for table, column in enumerate(self.categories)
            if column.bag
        )

    @property
    def list_columns(self) -> tuple[str, ...]:
        """The columns of a Parquet file that hold lists."""
        return tuple(
            name
            for column in self.categories
            if column.bag and column.bag.separator == UNIT_SEPARATOR
            for name in (column.column, column.bag.weights)
            if name
        )

    def record_schema(self) -> Schema:
        """Returns the schema of the rows that the engines make of such a log."""
        fields = [
            LogField("", LABEL, INTEGER),
            *(LogField(column.name, DENSE, FLOAT) for column in self.dense),
            *(LogField(column.name, CATEGORICAL, INTEGER) for column in self.categories),
        ]
        if self.split is not None:
            fields.append(LogField("", SPLIT, TEXT))
        first = 1 + len(self.dense)
        return Schema(
            tuple(fields),
            tuple(range(1, first)),
            tuple(range(first, first + len(self.categories))),
            columns=self,
        )

    def header_fault(self, line: bytes) -> str | None:
        """Describes what is wrong with a header, without its line end; None if it is good."""
        text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "backslashreplace")
        found = [name.strip().strip('"') if self.quoted else name for name in self._names_of(text)]
        if found == list(self.names):
            return None
        return f"expected the header {self.delimiter.join(self.names)!r}, found {text[:200]!r}"

    def _names_of(self, header: str) -> list[str]:
        names = header.split(self.delimiter)
        return [name.strip(" ") for name in names] if self.trim else names


def list_fault(found: bool, expected: bool, nested: bool) -> str | None:
    """Describes what is wrong with the type of a column of a Parquet file; None if it is good.

    Args:
        found: Whether it holds lists.
        expected: Whether the schema makes bags of its lists.
        nested: Whether the elements of its lists have parts themselves.
    """
    if found and not expected:
        return (
            "expected one value in a field, found lists; give the column max_ids, for bags of ids"
        )
    if expected and not found:
        return "expected lists, found one value in a field; give a separator to split it"
    return "expected lists of values, found lists of lists; flatten them" if nested else None
