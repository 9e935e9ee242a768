"""Fills variables of a SavedModel in pieces: none of them is ever held as a whole.

A SavedModel keeps its variables in a checkpoint of TensorFlow's own format. There a tensor may lie
in slices, each written by itself, and several checkpoints can be merged into one by public
operations. Restoring puts the slices together. What the variables mean is no concern of this
module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf
from numpy.typing import NDArray

PIECE_BYTES = 32 << 20
# Each piece is a file, and a reader keeps all of them open: fewer than the usual limit of 1024.
MOST_PIECES = 400
_ENTRY = "/.ATTRIBUTES/VARIABLE_VALUE"  # behind a variable's name


@dataclass(frozen=True)
class PiecewiseVariable:
    """The values that a variable gets.

    Attributes:
        dtype: The variable's type. Stored values of another type of that size are taken bit by bit.
        shape: The variable's shape; its first axis is cut into pieces.
        read: Reads rows [first, last).
    """

    dtype: tf.DType
    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]

    @property
    def bytes(self) -> int:
        """The size of all values."""
        return int(math.prod(self.shape)) * self.dtype.size


def fill_variables(prefix: Path, pending: Mapping[str, PiecewiseVariable]) -> None:
    """Replaces variables of a saved checkpoint, whatever their sizes in it are.

    Args:
        prefix: The checkpoint, such as `variables/variables` in the folder of a SavedModel.
        pending: The values by the name of the variable, which is an attribute of the root object.

    Raises:
        ValueError, OSError: Values cannot be read; as `PiecewiseVariable.read` raises.
    """
    filled = {name + _ENTRY: variable for name, variable in pending.items() if variable.bytes}
    piece_bytes = max(
        PIECE_BYTES, -(-sum(variable.bytes for variable in filled.values()) // MOST_PIECES)
    )
    parts = [_copy_others(prefix, filled.keys())]
    for entry, variable in filled.items():
        for first, last in _pieces(variable, piece_bytes):
            part = prefix.with_name(f"part-{len(parts)}")
            values = tf.constant(variable.read(first, last).view(variable.dtype.as_numpy_dtype))
            tf.raw_ops.SaveV2(
                prefix=str(part),
                tensor_names=[entry],
                shape_and_slices=[_slice_text(variable.shape, first, last)],
                tensors=[values],
            )
            parts.append(part)
    for old in prefix.parent.glob(f"{prefix.name}.*"):
        old.unlink()
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(part) for part in parts],
        destination_prefix=str(prefix),
        delete_old_dirs=False,
    )
    # The data files are renamed by the merge, the indices of the parts are left.
    for part in parts:
        part.with_name(f"{part.name}.index").unlink(missing_ok=True)


def _copy_others(prefix: Path, without: Any) -> Path:
    """Writes the checkpoint's other entries, which are small, to a checkpoint of their own."""
    reader = tf.train.load_checkpoint(str(prefix))
    names = sorted(reader.get_variable_to_shape_map().keys() - without)
    part = prefix.with_name("part-0")
    tf.raw_ops.SaveV2(
        prefix=str(part),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(reader.get_tensor(name)) for name in names],
    )
    return part


def _pieces(variable: PiecewiseVariable, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts a variable's first axis into ranges of about equal bytes."""
    rows = variable.shape[0]
    step = max(1, piece_bytes * rows // variable.bytes)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _slice_text(shape: tuple[int, ...], first: int, last: int) -> str:
    """Which part of a tensor a piece is, as TensorFlow writes it: `1000 64 0,100:0,64`."""
    parts = [f"{first},{last - first}", *(f"0,{size}" for size in shape[1:])]
    return f"{' '.join(map(str, shape))} {':'.join(parts)}"
