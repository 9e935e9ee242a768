"""Flags from settings: one for each field of a dataclass, explained by its docstring.

It must not know which settings there are.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Callable


def add_flags(parser: Any, kind: Any, defaults: str = "the preset's") -> None:
    """Adds a flag for each field of a dataclass; one that is not given is None.

    Args:
        parser: A parser of `argparse`, or a group of one.
        kind: The dataclass.
        defaults: What counts where a flag is not given, for the help.
    """
    types = typing.get_type_hints(kind)
    for setting in fields(kind):
        text = f"{help_text(kind, setting.name)} (default: {defaults})"
        given: dict[str, Any] = {"type": _parser_of(types[setting.name])}
        if types[setting.name] is bool:
            given = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{setting.name}", help=text, default=None, **given)


def given_values(kind: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass whose flags were given."""
    names = [setting.name for setting in fields(kind)]
    return {name: flags[name] for name in names if flags.get(name) is not None}


def help_text(kind: Any, name: str) -> str:
    """The first sentence that the docstring of a dataclass says of a field."""
    entries = (kind.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    text = " ".join(f" {entries}".partition(f" {name}: ")[2].split())
    return text.partition(". ")[0].rstrip(".")


def _parser_of(kind: Any) -> Callable[[str], Any]:
    """What turns a flag's text into a value of a type; a tuple's parts lie between commas."""
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]

        def parts(text: str) -> tuple[Any, ...]:
            return tuple(part(word) for word in text.split(","))

        parts.__name__ = f"{part.__name__},{part.__name__}"  # of argparse's messages
        return parts
    return typing.cast(Callable[[str], Any], kind)
