"""The weights of an artifact as the scorer's library takes them, mapped and with checked shapes.

It reads; what is computed with the weights is not its concern.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.known_rows import initial_bounds
from dlrm.distributed.host_memory import memory_limit
from dlrm.formats.quantities import size_text
from serving import artifact as files
from serving.artifact import Artifact
from serving.dense_weights import cross_shapes
from serving.id_columns import IdColumns
from serving.row_encoding import INT8, stored_spec
from serving.row_order import position_type
from serving.scorer_library import (
    INTERACTIONS,
    ONE_ID,
    POOLINGS,
    ROW_TYPES,
    LibraryLayer,
    LibraryModel,
    address,
)

_REMEDY = "export it again with `python3 -m serving export`"
_OTHER_MEMORY = 48 << 20  # bytes of interpreter, NumPy, MLPs and activations, at least
_INDEX_BYTES = 14  # of a known id in the library's index, with what its tables' ends leave empty
_MOST_LAYERS = 64  # of an MLP in the library
_MOST_INPUTS = 60_000  # of an int8 layer, so that no sum exceeds 32 bits


class MappedWeights:
    """Views into the files of an artifact; `model` refers to them and lives as long as they.

    Args:
        artifact: The artifact.
        hot_share: The share of the rows' bytes that goes to memory, from 0 to 1.

    Attributes:
        model: What `scorer_open` takes.

    Raises:
        ValueError: A tensor is missing or does not fit the model, or only some rows are to be in
            memory and they are not in order of use.
        OSError: A file cannot be opened.
    """

    def __init__(self, artifact: Artifact, hot_share: float) -> None:
        if not 0 <= hot_share <= 1:
            raise ValueError(f"hot_share: expected a share from 0 to 1, found {hot_share}")
        if hot_share < 1 and not artifact.row_order:
            raise ValueError(
                f"{artifact.folder}: hot_share: expected 1, as its rows are not in order of use, "
                f"found {hot_share:g}; export it with --row_frequencies"
            )
        self._artifact = artifact
        self._kept: list[Any] = []  # what the model's addresses point to
        self.model = LibraryModel()
        shape = artifact.model
        if shape.num_dense is None or shape.bottom_mlp is None or shape.top_mlp is None:
            raise ValueError(f"{artifact.folder}: expected MLPs, found tables alone; {_REMEDY}")
        self.model.num_dense = shape.num_dense
        self.model.tables, self.model.width = len(shape.vocab_sizes), shape.embedding_dim
        self.model.vocab_sizes = self._keep(np.array(shape.vocab_sizes, np.int64))
        self._describe_bags()
        self._map_known_ids()
        self._map_rows(hot_share)
        self._map_layers(shape.num_dense, shape.bottom_mlp, shape.top_mlp)
        self._map_interaction()
        self._map_dictionary()

    def _keep(self, array: NDArray[Any]) -> int | None:
        self._kept.append(array)
        return address(array)

    def _tensors(self, name: str) -> Tensors:
        return Tensors(self._artifact.folder / name)

    def _describe_bags(self) -> None:
        shape = self._artifact.model
        columns = IdColumns.of_model(shape)
        if columns.bags:
            pooling = [
                POOLINGS[kind] if most else ONE_ID
                for kind, most in zip(shape.pooling, shape.max_ids)
            ]
            self.model.pooling = self._keep(np.array(pooling, np.int32))
            self.model.max_ids = self._keep(columns.counts.astype(np.int32))

    def _map_known_ids(self) -> None:
        known, model = self._artifact.known_ids, self.model
        if known is None:
            return
        if len(known.counts) != model.tables:
            raise ValueError(
                f"{self._artifact.folder}: expected known ids of {model.tables} tables, found "
                f"those of {len(known.counts)}; {_REMEDY}"
            )
        ids = self._tensors(files.KNOWN_IDS_FILE)
        model.known_counts = self._keep(np.array(known.counts, np.int64))
        model.known_ids = self._keep(ids.take(files.IDS, np.dtype(np.int32), (sum(known.counts),)))
        if known.seed is not None:
            model.initial_bounds = self._keep(initial_bounds(self._artifact.model.vocab_sizes))
            model.initial_seed = known.seed % 2**64

    def _map_rows(self, hot_share: float) -> None:
        artifact, model = self._artifact, self.model
        tensors = self._tensors(files.TABLES_FILE)
        dtype, values = stored_spec(artifact.tables, artifact.model.embedding_dim)
        model.row_type = ROW_TYPES[artifact.tables]
        model.rows = self._keep(tensors.take(files.ROWS, dtype, (artifact.rows, values)))
        model.rows_mapped = 1
        model.hot_rows = round(artifact.rows * hot_share)
        known = artifact.known_ids
        index = _INDEX_BYTES * sum(known.counts) if known else 0
        self._check_memory(model.hot_rows * dtype.itemsize * values + index, hot_share)
        if artifact.tables == INT8:
            scales = tensors.take(files.TABLE_SCALES, np.float32, (int(model.tables),))
            model.table_scales = self._keep(scales)
        if artifact.row_order:
            dtype = position_type(artifact.rows)
            order = self._tensors(files.ROW_ORDER_FILE)
            positions = order.take(files.POSITIONS, dtype, (artifact.rows,))
            model.positions, model.position_bytes = self._keep(positions), dtype.itemsize

    def _check_memory(self, needed: int, hot_share: float) -> None:
        """Refuses rows that the system would end the process for."""
        limit = memory_limit()
        if limit is not None and needed + _OTHER_MEMORY > limit:
            raise ValueError(
                f"{self._artifact.folder}: expected at most {size_text(limit)}, the memory that "
                f"this process may take, found {size_text(needed)} of rows and "
                f"{size_text(_OTHER_MEMORY)} for all else with --hot_share={hot_share:g}; set a "
                "smaller --hot_share, which needs an export with --row_frequencies"
            )

    def _map_layers(self, num_dense: int, bottom: tuple[int, ...], top: tuple[int, ...]) -> None:
        tables, width = int(self.model.tables), int(self.model.width)
        interaction = self._artifact.model.interaction_shape.output_width(width, tables)
        tensors = self._tensors(files.DENSE_FILE)
        for mlp, sizes in (("bottom", (num_dense, *bottom)), ("top", (interaction, *top))):
            count = len(sizes) - 1
            if not 1 <= count <= _MOST_LAYERS:
                raise ValueError(
                    f"{self._artifact.folder}: {mlp} MLP: expected 1 to {_MOST_LAYERS} layers, "
                    f"found {count}"
                )
            layers = (LibraryLayer * count)(*self._layers(tensors, mlp, sizes))
            self._kept.append(layers)
            setattr(self.model, mlp, layers)
            setattr(self.model, f"{mlp}_count", count)
        if bottom[-1] != width or top[-1] != 1:
            raise ValueError(
                f"{self._artifact.folder}: expected a bottom MLP that ends with {width} units and "
                f"a top MLP that ends with 1, found {bottom[-1]} and {top[-1]}"
            )

    def _map_interaction(self) -> None:
        """The kind of the interaction, and two layers without ReLU for each cross layer."""
        shape = self._artifact.model
        if shape.interaction not in INTERACTIONS or shape.cross_layers > _MOST_LAYERS:
            raise ValueError(
                f"{self._artifact.folder}: expected an interaction of {', '.join(INTERACTIONS)} "
                f"with at most {_MOST_LAYERS} cross layers, found {shape.interaction} with "
                f"{shape.cross_layers}; {_REMEDY}"
            )
        self.model.interaction = INTERACTIONS[shape.interaction]
        tensors, layers = self._tensors(files.DENSE_FILE), []
        weights = [
            tensors.take(name, np.dtype(np.float32), size)
            for name, size in cross_shapes(shape).items()
        ]
        for v, w, bias in zip(weights[::3], weights[1::3], weights[2::3]):
            for kernel, its_bias in ((v, np.zeros(v.shape[1], np.float32)), (w, bias)):
                layer = LibraryLayer(inputs=kernel.shape[0], outputs=kernel.shape[1])
                layer.kernel, layer.bias = self._keep(kernel), self._keep(its_bias)
                layers.append(layer)
        self.model.cross_count = len(layers) // 2
        if layers:
            array = (LibraryLayer * len(layers))(*layers)
            self._kept.append(array)
            self.model.cross = array

    def _layers(self, tensors: Tensors, mlp: str, sizes: tuple[int, ...]) -> Iterator[LibraryLayer]:
        int8 = self._artifact.dense == "int8"
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            layer = LibraryLayer(inputs=inputs, outputs=outputs, int8=int(int8))
            layer.relu = int(mlp == "bottom" or index < len(sizes) - 2)
            parts: list[tuple[str, Any, tuple[int, ...]]] = [
                ("kernel", np.int8 if int8 else np.float32, (inputs, outputs)),
                ("bias", np.float32, (outputs,)),
            ]
            if int8:
                if inputs > _MOST_INPUTS:
                    raise ValueError(
                        f"{self._artifact.folder}: expected int8 layers of at most {_MOST_INPUTS} "
                        f"inputs, found {inputs}; export it with --dense=float32"
                    )
                parts += [
                    ("kernel_scale", np.float32, (outputs,)),
                    ("input_scale", np.float32, (inputs,)),
                    ("input_zero", np.int32, (inputs,)),
                ]
            for part, dtype, shape in parts:
                array = tensors.take(f"{mlp}_{part}_{index}", np.dtype(dtype), shape)
                setattr(layer, part, self._keep(array))
            yield layer

    def _map_dictionary(self) -> None:
        rules = self._artifact.dictionary
        if rules is None:
            return
        tensors = self._tensors(files.DICTIONARY_FILE)
        count = tensors.length(files.VALUES)
        values = tensors.take(files.VALUES, np.dtype(np.int64), (count,))
        self.model.dictionary_count = count
        self.model.dictionary_values = self._keep(values)
        ids = tensors.take(files.IDS, np.dtype(np.int32), (count,))
        self.model.dictionary_ids = self._keep(ids)
        self.model.moduli = self._keep(np.array([m or 0 for m in rules["moduli"]], np.int64))
        self.model.missing_is_value = int(rules["missing_is_value"])


class Tensors:
    """The tensors of a file, each checked when it is taken.

    Args:
        path: A safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays = files.map_tensors(path)

    def take(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A tensor of this type and shape.

        Raises:
            ValueError: There is none; the message names the file.
        """
        expected = f"{np.dtype(dtype).name} {list(shape)}"
        array = self._arrays.get(name)
        found = "none" if array is None else f"{array.dtype.name} {list(array.shape)}"
        if array is None or found != expected:
            raise ValueError(f"{self._path}: {name}: expected {expected}, found {found}; {_REMEDY}")
        return array

    def length(self, name: str) -> int:
        """The first dimension of a tensor, 0 if there is none."""
        array = self._arrays.get(name)
        return 0 if array is None or array.ndim == 0 else len(array)
