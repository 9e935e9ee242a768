"""Regular expressions that cut lines into fields, in the syntax that Java and Rust share."""

from __future__ import annotations

import re

_BLANKS = r"[ \t]*"
_QUOTED = r'"[^"]*(?:""[^"]*)*"'


def field_pattern(delimiter: str) -> str:
    """Returns the pattern of a delimiter and the field after it, quoted or not."""
    escaped = delimiter_pattern(delimiter)
    blanks = _BLANKS if delimiter != "\t" else " *"
    return rf'{escaped}(?:{blanks}{_QUOTED}{blanks}|[^"{escaped}]*)'


def line_pattern(delimiter: str, fields: int | None) -> str:
    """Returns the pattern of a line of so many fields, quoted or not; None is any number."""
    field = field_pattern(delimiter)
    first = field[len(delimiter_pattern(delimiter)) :]
    return rf"\A{first}(?:{field}){'*' if fields is None else f'{{{fields - 1}}}'}\z"


def json_path(name: str) -> str:
    """Returns the path of a key of a JSON object."""
    return f"$['{name}']"


def delimiter_pattern(delimiter: str) -> str:
    """Returns the pattern of a delimiter alone."""
    return r"\t" if delimiter == "\t" else re.escape(delimiter)
