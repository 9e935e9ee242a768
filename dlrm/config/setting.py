"""What a setting is: a field of a section with its help text, from which `main.py` makes a flag."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


def flag(
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    *,
    affects_training: bool = True,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Declares a field that is a flag.

    Args:
        default: The flag's default.
        text: The flag's help text.
        choices: The values that the flag may take; empty for any of its type.
        affects_training: Whether another value trains another model. A run that resumes with such
            a setting changed says so.
        aliases: Further names of the flag, under which other programs know it.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "affects_training": affects_training,
        "aliases": aliases,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of a section, which is one flag.

    Attributes:
        section: The attribute of `Config` that holds the section.
        name: The field and the flag.
        type: The field's type.
        default: The flag's default.
        help: The flag's help text.
        choices: The values that it may take; empty for any of its type.
        affects_training: Whether another value trains another model.
        aliases: Further names of the flag.
    """

    section: str
    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    affects_training: bool
    aliases: tuple[str, ...]


def require_positive(section: Any, *names: str) -> None:
    """Checks that the named fields are 1 or more.

    Raises:
        ValueError: A field is less than 1; the message names the first such field.
    """
    for name in names:
        if getattr(section, name) < 1:
            raise ValueError(f"expected --{name} of 1 or more, found {getattr(section, name)}")
