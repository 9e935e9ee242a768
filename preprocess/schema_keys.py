"""Reads the keys of a schema file, and refuses the wrong ones in a line that names key and remedy.

This module must not know what the keys mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any


def refuse_unknown(where: str, content: Mapping[Any, Any], known: Collection[str]) -> None:
    """Raises `ValueError` if a mapping has a key that is not known; suggests the nearest one.

    Args:
        where: What the message begins with.
        content: The mapping.
        known: The keys that it may have.
    """
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else "; remove it"
            raise ValueError(f"{where}expected {', '.join(sorted(known))}, found {key}{hint}")


def choice(
    content: Mapping[str, Any],
    key: str,
    choices: tuple[Any, ...],
    default: Any,
    where: str = "",
) -> Any:
    """Returns the value of a key that has a few possible ones.

    Raises:
        ValueError: The value is none of `choices`; the message begins with `where` and the key.
    """
    value = content.get(key, default)
    if value not in choices:
        raise ValueError(
            f"{where}{key}: expected one of {', '.join(map(str, choices))}, found {value!r}; choose"
            " one of them"
        )
    return value


def entries(content: Mapping[str, Any], key: str, known: set[str]) -> list[Mapping[str, Any]]:
    """Returns a list of columns as mappings; a column may be given by its name alone.

    Raises:
        ValueError: The value is no list, or a column has an unknown key or no name.
    """
    given = content.get(key, [])
    if not isinstance(given, list):
        raise ValueError(f"{key}: expected a list of columns, found {given!r}; write [a, b]")
    found = [entry if isinstance(entry, dict) else {"name": str(entry)} for entry in given]
    for entry in found:
        if "name" not in entry:
            raise ValueError(
                f"{key}: expected {', '.join(sorted(known))}, found {entry}; add name: COLUMN"
            )
        refuse_unknown(f"{key}: ", entry, known)
    return [{**entry, "name": str(entry["name"])} for entry in found]
