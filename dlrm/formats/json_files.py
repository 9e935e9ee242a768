"""JSON objects in files: read with one-line errors, written complete or not at all.

The keys are the concern of the modules that describe a format.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

from dlrm.formats import atomic_files
from dlrm.formats.file_names import StrPath


def read_json_object(path: StrPath, remedy: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: The file.
        remedy: What the user can do about a missing or malformed file; ends the error message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or holds something other than an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)}: no such file; {remedy}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{os.fspath(path)}: not valid JSON ({reason}); {remedy}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{os.fspath(path)}: expected a JSON object, found a {kind}; {remedy}")
    return content


def write_json_object(path: StrPath, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Writes a file that holds one JSON object, so that it is complete or as it was before."""
    atomic_files.write_text(path, json_text(content, indent))


def json_text(content: Mapping[str, Any], indent: int | None = None) -> str:
    """The text of a file that holds one JSON object."""
    return json.dumps(content, indent=indent) + "\n"


def sum_of_json(content: Mapping[str, Any]) -> str:
    """CRC-32 of a JSON object, however it is laid out in a file, as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
