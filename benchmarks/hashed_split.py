"""A split folder without a dictionary: the number of a value is its id; for dynamic tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm.formats import file_names
from dlrm.formats.json_files import write_json_object
from dlrm.formats.metadata import Metadata

HASHED_IDS = 2**31 - 1  # of each table


def write_hashed(log: Path, folder: Path, num_dense: int) -> None:
    """Writes a split folder in which the id of a value is its number modulo `HASHED_IDS`.

    Args:
        log: A log without missing values.
        folder: The folder to write.
        num_dense: The number of dense columns.
    """
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    hashes = [[int(text, 16) % HASHED_IDS for text in line[1 + num_dense :]] for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (
        (file_names.LABEL, [line[0] for line in lines]),
        (file_names.DENSE, [line[1 : 1 + num_dense] for line in lines]),
        (file_names.CATEGORY, hashes),
    ):
        np.array(values).astype("<i4").tofile(folder / name)
    sizes = (HASHED_IDS,) * len(hashes[0])
    described = Metadata(sizes, "int32", "int32", "int32", True, num_dense, dense_log_offset=1)
    write_json_object(folder / file_names.METADATA, described.to_json())
