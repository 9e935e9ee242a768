"""The artifact's dictionary: which raw value has which id, and how raw values are prepared.

It is made from an output folder of preprocess. This module turns preprocess' rules into plain data;
applying them to samples is the scorer's concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from dlrm.checkpoint.manifest import ModelShape
from dlrm.checkpoint.safetensors_file import FileDigest, allocate, digest_file
from dlrm.formats import atomic_files
from dlrm.formats.file_names import RECORDS
from dlrm.formats.metadata import check_log_offset, check_num_dense, check_vocab_sizes
from preprocess.rules import NAMED_RULES, rules_by_name
from serving.artifact import DICTIONARY_FILE, IDS, VALUES

_TABLE_SHIFT = 32  # the table's number lies above the 32 bits of a value
_REMEDY = "give --dictionary the output folder of preprocess that this model's data came from"


def vocabulary(folder: Path, description: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes of the tables that a result of preprocess is of.

    Args:
        folder: The result's folder, for the error message.
        description: The content of its `records.json`.

    Raises:
        ValueError: The description does not say, or some tables have no dictionary.
    """
    if description.get("hashed"):
        raise ValueError(
            f"{folder}: expected a dictionary of every table, found ids: hash in tables "
            f"{description['hashed']}; leave --dictionary out, and prepare new lines with "
            f"`python3 -m preprocess --dictionary={folder}`"
        )
    try:
        sizes = description.get("vocab_sizes")
        check_vocab_sizes(sizes)
        check_num_dense(description.get("num_dense"))
        check_log_offset(description.get("dense_log_offset"))
    except ValueError as error:
        raise ValueError(f"{folder / RECORDS}: {error}; {_REMEDY}") from None
    assert sizes is not None
    return tuple(sizes)


def write_dictionary(
    source: Path, model: ModelShape, folder: Path
) -> tuple[dict[str, Any], FileDigest]:
    """Writes `dictionary.safetensors`; holds one table at a time.

    Args:
        source: The output folder of preprocess.
        model: The model that the dictionary must fit.
        folder: The artifact's folder.

    Returns:
        The rules as `artifact.json` keeps them, and the digest of the file.

    Raises:
        ValueError: The dictionary does not fit the model, or a file is malformed.
        OSError: A file cannot be read or written.
    """
    # Polars takes its time to load.
    from preprocess.dictionary_files import read_description, read_table

    description = read_description(source)
    sizes = vocabulary(source, description)
    _check_fit(source, sizes, description, model)
    rules = _rules(source, description, model)
    counts = [len(read_table(source, table, size).values) for table, size in enumerate(sizes)]
    total = sum(counts)
    path = folder / DICTIONARY_FILE
    int64, int32 = np.dtype("<i8"), np.dtype("<i4")
    start = allocate(path, {VALUES: (int64, (total,)), IDS: (int32, (total,))})
    with open(path, "r+b") as file, atomic_files.naming(path):
        for table, (begin, size) in enumerate(zip([0, *accumulate(counts)], sizes)):
            entries = read_table(source, table, size)
            by_value = np.argsort(entries.values)
            values = entries.values[by_value].astype(int64)
            if len(values) and (values[1:] == values[:-1]).any():
                raise ValueError(
                    f"{source}: table {table}: expected each value once, found one twice; "
                    "make it again"
                )
            file.seek(start + begin * int64.itemsize)
            file.write((values + (table << _TABLE_SHIFT)).data)
            file.seek(start + total * int64.itemsize + begin * int32.itemsize)
            file.write((by_value + entries.first_id).astype(int32).data)
    return rules, digest_file(path)


def _check_fit(
    source: Path, sizes: tuple[int, ...], description: Mapping[str, Any], model: ModelShape
) -> None:
    """Refuses the dictionary of another model."""
    pairs: list[tuple[str, int | None, int]] = [
        ("dense columns", model.num_dense, description["num_dense"]),
        ("tables", len(model.vocab_sizes), len(sizes)),
    ]
    for table, (ours, theirs) in enumerate(zip(model.vocab_sizes, sizes)):
        pairs.append((f"rows of table {table}", ours, theirs))
    for what, expected, found in pairs:
        if expected != found:
            raise ValueError(
                f"{source}: {what}: expected {expected} as in the checkpoint, found {found}; "
                f"{_REMEDY}"
            )


def _rules(source: Path, description: Mapping[str, Any], model: ModelShape) -> dict[str, Any]:
    """How raw values are prepared, as `artifact.json` keeps it."""
    name = description.get("rules")
    tables = len(model.vocab_sizes)
    missing_is_value: Any
    moduli: Any
    lowest: Any
    if name in NAMED_RULES:
        rules = rules_by_name(str(name), None, description.get("max_table_rows"))
        missing_is_value = rules.missing_is_value
        moduli = [rules.modulus(table) for table in range(tables)]
        lowest = [rules.lowest(column) for column in range(model.num_dense or 0)]
    else:
        missing_is_value = description.get("missing_is_value")
        moduli, lowest = description.get("moduli"), description.get("lowest_by_column")
        if lowest == [] and model.num_dense:
            raise ValueError(
                f"{source}: expected a log of numbers, whose raw values the scorer can take, found "
                "columns of floats or texts; leave --dictionary out, and prepare new lines with "
                f"`python3 -m preprocess --dictionary={source}`"
            )
        if not (
            isinstance(missing_is_value, bool)
            and isinstance(moduli, list)
            and len(moduli) == tables
            and isinstance(lowest, list)
            and len(lowest) == model.num_dense
        ):
            raise ValueError(
                f"{source / RECORDS}: expected the rules {name!r} with missing_is_value, moduli "
                "and lowest_by_column, found none; run preprocess again with this version"
            )
    return {
        "rules": name,
        "moduli": moduli,
        "missing_is_value": missing_is_value,
        "lowest_dense": lowest,
        "dense_log_offset": float(description["dense_log_offset"]),
    }
