"""What the text of a number, an integer, a hash or a time looks like, in both engines."""

from __future__ import annotations

from preprocess.columns import NUMBER
from preprocess.dialect import Dialect, Expression
from preprocess.schema import HEX, INTEGER

NUMBER_PATTERN = r"\A[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\z"
DATE_PATTERN = (
    r"\A[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]([01][0-9]|2[0-3]):[^\n]*)?\z"
)
_SECONDS = r"\A[0-9]{1,11}(\.[0-9]*)?\z"
_INTEGER = r"\A0*[0-9]{1,10}\z"
_HEX = r"\A[0-9a-fA-F]{1,8}\z"
LARGEST = 3.4028234663852886e38  # float32
_LARGEST_ID = float(2**32 - 1)


def kind_check(dialect: Dialect, kind: str, text: Expression) -> tuple[str, Expression]:
    """Returns what a text of a kind must be, in words with the remedy, and as a condition."""
    if kind == NUMBER:
        number = dialect.number(text)
        good = dialect.matches(text, NUMBER_PATTERN) & (number <= LARGEST) & (number >= -LARGEST)
        return "a float32 number (list texts such as NA under absent)", good
    if kind == INTEGER:
        good = dialect.matches(text, _INTEGER) & (dialect.number(text) <= _LARGEST_ID)
        return "a 32-bit integer (type: value takes any text)", good
    if kind == HEX:
        expected = "at most 8 hexadecimal digits (type: value takes any text)"
        return expected, dialect.matches(text, _HEX)
    good = dialect.matches(text, DATE_PATTERN) | dialect.matches(text, _SECONDS)
    return "a time: seconds since 1970 or YYYY-MM-DD HH:MM", good
