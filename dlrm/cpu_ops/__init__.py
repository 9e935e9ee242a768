"""Operations for CPUs: an MLP's layers in one, forward and backward, and work on keys and rows.

`make cpu_ops` builds them. They work on tensors alone, independent of models, tables and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from dlrm.op_library import load_operations, once

BUILD = Path(__file__).resolve().parents[2] / "build" / "cpu_ops"
LIBRARY = "cpu_ops.so"
REMEDY = "build them with `make cpu_ops`, or leave --custom_mlp out"


class CpuOps(NamedTuple):
    """The operations; all values are float32, all integers int32, and keys int32 or int64.

    Only `fused_mlp` has a gradient. The others give the bits of the operations of TensorFlow that
    they replace; n is a number of keys, U that of distinct ones.

    Attributes:
        fused_mlp: `(inputs [B, I], kernels, biases, *, last_relu, input_learns)`, with a kernel
            [inputs, outputs] and a bias [outputs] for each layer. It returns [B, outputs of the
            last layer], with the values and gradients of `dlrm.layers.mlp`. Every layer but the
            last has a ReLU; `last_relu` says whether that one has it too, and `input_learns`
            whether anything asks for the gradient of the inputs.
        keys_of_ids: `(ids [B, T], offsets [T], sizes [T])`. It returns the keys [B * T], each
            `offset + id` with the id clipped to its table, and the number [] of ids outside theirs.
        distinct_keys: `(keys [n])`. It returns the distinct keys [U] in the order in which they
            first appear, and for each key its position among these [n], as `tf.unique` does.
        keys_by_owner: `(keys [n], owners=N)`. It returns the keys [n] of owner 0, of owner 1 and
            so on, where `key % N` is a key's owner, with the position [n] that each of them had
            before, the position [n] that each key has there, and the number [N] of each owner's.
        read_rows: `(table, rows [U], row_of [n], width=W, keep=)`, with the resource handle of a
            variable or of `row_table`. It returns the first W columns of `table[rows[row_of]]`
            [n, W], and `table[rows]` if `keep`, else nothing.
        sum_rows: `(vectors [n, W], row_of [n], rows [])`. It returns [rows, W], the sums of the
            vectors of each row, added in their order, as `tf.math.unsorted_segment_sum` does.
        descend_rows: `(table, rows [U], row_of [n], gradients [n, W], step_size [])`. It subtracts
            `step_size` times the sums of the gradients of each row from the table's rows.
        row_table: `(width=S, shared=, admit_after=, evict_after=)`. It returns the handle of a new
            hash table of rows of S values; `row_table.h` says what the numbers mean. Its keys are
            those of all tables, and the keys of table t end before `ends[t]`, int64.
        sight_keys: `(table, keys [n], ends [T], step [])`. It counts that the batch of this step
            holds the keys, and returns their rows [n], where a key without a row has that of its
            table t, which is t; and new rows that need values, with their keys, int64.
        find_keys: `(table, keys [n], ends [T], step [])`. It returns the rows [n] of keys and
            counts nothing. A key without a row has that of its table, or -1 if none is shared.
        write_rows: `(table, rows [n], stored [n, S])`. It overwrites rows.
        list_keys: `(table)`. It returns all keys, int64, and of each its row or -1, the number of
            steps that held it, and the last of these.
        put_keys: `(table, keys, seen, last, has_row)`. It takes over what `list_keys` returned, and
            returns the rows, or -1.
        clear_keys: `(table)`. It forgets all keys.
    """

    fused_mlp: Callable[..., tf.Tensor]
    keys_of_ids: Callable[..., Any]
    distinct_keys: Callable[..., Any]
    keys_by_owner: Callable[..., Any]
    read_rows: Callable[..., Any]
    sum_rows: Callable[..., tf.Tensor]
    descend_rows: Callable[..., Any]
    row_table: Callable[..., tf.Tensor]
    sight_keys: Callable[..., Any]
    find_keys: Callable[..., tf.Tensor]
    write_rows: Callable[..., Any]
    list_keys: Callable[..., Any]
    put_keys: Callable[..., tf.Tensor]
    clear_keys: Callable[..., Any]


def is_built(build: Path = BUILD) -> bool:
    """Whether the operations were built for this TensorFlow."""
    return (build / f"tensorflow-{tf.__version__}" / LIBRARY).exists()


@once
def load(build: Path = BUILD) -> CpuOps:
    """Loads the operations.

    Args:
        build: The folder that `make cpu_ops` writes to, with a subfolder for each version of
            TensorFlow.

    Returns:
        The operations.

    Raises:
        OSError: They are not built, built for another TensorFlow only, or from older sources.
    """
    operations = load_operations("the operations for CPUs", build, LIBRARY, REMEDY)
    names = CpuOps._fields[1:]
    if missing := [name for name in names if not hasattr(operations, name)]:
        raise OSError(
            f"expected the operations for CPUs in {build} to be those of these sources, found them "
            f"without {missing[0]}; build them anew with `make cpu_ops`"
        )

    def fused_mlp(
        inputs: tf.Tensor,
        kernels: Sequence[tf.Tensor],
        biases: Sequence[tf.Tensor],
        *,
        last_relu: bool,
        input_learns: bool,
    ) -> tf.Tensor:
        return operations.fused_mlp(
            input=inputs,
            kernels=list(kernels),
            biases=list(biases),
            last_relu=last_relu,
            input_learns=input_learns,
        ).output

    @tf.RegisterGradient("FusedMlp")
    def gradient(operation: Any, upstream: tf.Tensor, _: Any) -> list[tf.Tensor | None]:
        inputs, *weights = operation.inputs
        output, hidden = operation.outputs
        asked = operation.get_attr("input_learns")
        found = operations.fused_mlp_grad(
            input=inputs,
            kernels=weights[: len(weights) // 2],
            hidden=hidden,
            output=output,
            upstream=upstream,
            last_relu=operation.get_attr("last_relu"),
            input_learns=asked,
        )
        of_input = found.input_gradient if asked else None
        return [of_input, *found.kernel_gradients, *found.bias_gradients]

    return CpuOps(fused_mlp, *(getattr(operations, name) for name in names))
