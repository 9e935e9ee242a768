"""The names of the files that hold or describe data, which programs and users exchange.

Names only: what is in a file is said by the module that reads and writes it.
"""

from __future__ import annotations

import os
from typing import Union

StrPath = Union[str, "os.PathLike[str]"]

# A split folder.
METADATA = "metadata.json"
LABEL = "label.bin"
DENSE = "dense.bin"
CATEGORY = "category.bin"
COLUMN_FILES = (LABEL, DENSE, CATEGORY)

# Record files; `records.json` and `checksums.json` also describe split folders.
RECORDS = "records.json"
CHECKSUMS = "checksums.json"
RECORD_FILE_SUFFIX = "_data.bin"


def category_file(table: int) -> str:
    """The file of one table's ids in a folder with a file for each table."""
    return f"category_{table}.bin"


def bag_ids(table: int) -> str:
    """The ids of a table that holds a bag of them for each sample."""
    return f"bag_{table}_ids.bin"


def bag_offsets(table: int) -> str:
    """Where each bag of a table begins among its ids."""
    return f"bag_{table}_offsets.bin"


def bag_weights(table: int) -> str:
    """The weights of a table's ids."""
    return f"bag_{table}_weights.bin"


def record_file(part: str) -> str:
    """The record file of a part of the data, such as `train`."""
    return part + RECORD_FILE_SUFFIX
