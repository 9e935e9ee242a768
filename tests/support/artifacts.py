"""Small artifacts of the scorer, written by hand, and what float64 NumPy makes of their weights.

Follows the format, independent of the code that exports and reads it. A seed gives the same bytes
on every run.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import packed_ids
from tests.support.bag_data import TableBags
from tests.support.reference_interactions import ReferenceDots, ReferenceInteraction
from tests.support.reference_known_ids import KnownTableReference

BLOCK = 1 << 20
ALIGNMENT = 64
TABLES = ("float32", "float16", "int8", "int8_rows")
DENSE = ("float32", "int8")
CODES = {"<f4": "F32", "<f2": "F16", "|i1": "I8", "|u1": "U8", "<i4": "I32", "<i8": "I64"}


@dataclass
class Layer:
    """One layer: its float kernel and bias, and what int8 makes of them, if it does."""

    kernel: NDArray[Any]  # [I, O]
    bias: NDArray[Any]  # [O]
    quantised: NDArray[Any] | None = None  # int8 [I, O]
    kernel_scale: NDArray[Any] | None = None  # float32 [O]
    input_scale: NDArray[Any] | None = None  # float32 [I]
    input_zero: NDArray[Any] | None = None  # int32 [I]

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """[B, I] -> [B, O], before the ReLU."""
        if self.quantised is None or self.kernel_scale is None:
            return values @ self.kernel.astype(np.float64) + self.bias.astype(np.float64)
        q = np.clip(np.rint(values / self.input_scale) + self.input_zero, 0, 255)
        sums = (q - self.input_zero) @ self.quantised.astype(np.float64)
        return sums * self.kernel_scale.astype(np.float64) + self.bias.astype(np.float64)


@dataclass
class ArtifactReference:
    """The weights of an artifact, and its logits in float64."""

    tables: list[Any]  # decoded rows of each table by id, float64 [rows, W]
    bottom: list[Layer]
    top: list[Layer]
    dictionaries: list[dict[int, int]] = field(default_factory=list)  # value -> id of each table
    moduli: list[int | None] = field(default_factory=list)
    missing_is_value: bool = True
    interaction: Any = None  # a `ReferenceInteraction`; the dot products by default

    def __post_init__(self) -> None:
        self.interaction = self.interaction or ReferenceDots(len(self.top[0].kernel))

    def logits(self, dense: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
        """float [B, D], int [B, T] -> float64 [B]."""
        return self._logits(dense, [table[column] for table, column in zip(self.tables, ids.T)])

    def bag_logits(self, dense: NDArray[Any], bags: list[TableBags]) -> NDArray[Any]:
        """float [B, D], the bags of each table -> float64 [B]."""
        vectors: list[NDArray[Any]] = [
            np.zeros((len(dense), table.shape[1])) for table in self.tables
        ]
        for table, vector, of_table in zip(self.tables, vectors, bags):
            for sample, ids in enumerate(of_table.bags):
                for place, number in enumerate(ids):
                    weight = 1.0 if of_table.weights is None else of_table.weights[sample][place]
                    vector[sample] += weight * table[number]
                if of_table.pooling == "mean" and len(ids):
                    vector[sample] /= len(ids)
        return self._logits(dense, vectors)

    def _logits(self, dense: NDArray[Any], vectors: list[NDArray[Any]]) -> NDArray[Any]:
        values = np.asarray(dense, np.float64)
        for layer in self.bottom:
            values = np.maximum(layer(values), 0)
        values = self.interaction.forward(np.stack([values, *vectors], axis=1))
        for index, layer in enumerate(self.top):
            values = layer(values)
            if index < len(self.top) - 1:
                values = np.maximum(values, 0)
        return values[:, 0]

    def ids_of(self, values: NDArray[Any]) -> NDArray[Any]:
        """The ids of raw values, int64 [B, T], where -1 is a missing one."""
        ids = np.zeros(values.shape, np.int32)
        for (sample, table), value in np.ndenumerate(values):
            number = int(value)
            if number < 0:
                if not self.missing_is_value:
                    continue
                number = 0
            number %= self.moduli[table] or 2**32
            ids[sample, table] = self.dictionaries[table].get(number, 0)
        return ids


def write_artifact(
    folder: Path,
    vocab_sizes: tuple[int, ...] = (7, 3, 11),
    width: int = 4,
    num_dense: int = 3,
    bottom: tuple[int, ...] = (5, 4),
    top: tuple[int, ...] = (6, 1),
    *,
    tables: str = "float32",
    dense: str = "float32",
    row_order: bool = False,
    dictionary: bool = False,
    missing_is_value: bool = True,
    modulus: int | None = None,
    largest_row_value: float = 1,
    interaction: str = "dot",
    cross_layers: int = 0,
    cross_rank: int = 0,
    pooling: tuple[str, ...] = (),
    max_ids: tuple[int, ...] = (),
    weighted: bool = False,
    known: tuple[tuple[int, ...], ...] | None = None,
    initial_seed: int | None = None,
    seed: int = 0,
    step: int = 3,
) -> ArtifactReference:
    """Writes a random artifact to `folder`, which must not exist.

    Only `known` ids of each table have rows, if there are any; all others have row 0, or with
    `initial_seed` their initial values.
    """
    assert bottom[-1] == width
    print("artifact of seed", seed)
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {}

    rows = [
        (generator.uniform(-1, 1, (size, width)) * largest_row_value).astype("<f4")
        for size in (vocab_sizes if known is None else [1 + len(ids) for ids in known])
    ]
    if initial_seed is not None:
        for table in rows:
            table[0] = 0
    stored, decoded, scales = _encode(rows, tables)
    count = len(stored)
    position_type = "<i8" if count >= 2**31 else "<i4"
    positions: NDArray[Any] = np.arange(count, dtype=position_type)
    if row_order:
        shuffled = np.random.default_rng([seed, 1]).permutation(positions)
        positions = shuffled.astype(position_type)
    by_position = np.empty_like(stored)
    by_position[positions] = stored
    content = {"rows": by_position}
    if scales is not None:
        content["table_scales"] = scales
    files["tables.safetensors"] = write_safetensors(folder / "tables.safetensors", content)
    if row_order:
        name = "row_order.safetensors"
        files[name] = write_safetensors(folder / name, {"positions": positions})

    tables_by_id: list[Any] = decoded
    if known is not None:
        name = "known_ids.safetensors"
        ids = np.array([number for ids in known for number in ids], "<i4")
        files[name] = write_safetensors(folder / name, {"ids": ids})
        tables_by_id = [
            KnownTableReference(ids, rows, vocab_sizes, table, initial_seed)
            for table, (ids, rows) in enumerate(zip(known, decoded))
        ]

    columns = interaction_columns(interaction, width, len(vocab_sizes))
    reference = ArtifactReference(
        tables_by_id,
        _layers(generator, (num_dense, *bottom)),
        _layers(generator, (columns, *top)),
    )
    cross = cross_weights(generator, columns, cross_layers, cross_rank)
    if interaction != "dot":
        reference.interaction = ReferenceInteraction(interaction, list(cross.values()))
    if dense == "int8":
        _quantise(reference, generator, vocab_sizes, num_dense)
    name = "dense.safetensors"
    files[name] = write_safetensors(folder / name, _dense_tensors(reference, dense) | cross)

    rules = None
    if dictionary:
        rules = {
            "rules": "dlrm",
            "moduli": [modulus] * len(vocab_sizes),
            "missing_is_value": missing_is_value,
            "lowest_dense": [0] * num_dense,
            "dense_log_offset": 1.0,
        }
        name = "dictionary.safetensors"
        files[name] = write_safetensors(
            folder / name, _dictionary(reference, seed, vocab_sizes, modulus)
        )
        reference.moduli = [modulus] * len(vocab_sizes)
        reference.missing_is_value = missing_is_value

    write_description(
        folder,
        {
            "format": 1,
            "model": {
                "num_dense": num_dense,
                "vocab_sizes": list(vocab_sizes),
                "embedding_dim": width,
                "bottom_mlp": list(bottom),
                "top_mlp": list(top),
                # Artifacts of before there were others do not name it.
                **({} if interaction == "dot" else {"interaction": interaction}),
                **({"cross_layers": cross_layers, "cross_rank": cross_rank} if cross else {}),
                **(
                    {"pooling": list(pooling), "max_ids": list(max_ids), "weighted": weighted}
                    if pooling
                    else {}
                ),
            },
            "tables": tables,
            "dense": dense,
            "step": step,
            "row_order": row_order,
            "packed_ids": packed_ids.plan(vocab_sizes).to_json(),
            "dictionary": rules,
            # Which older artifacts do not name either.
            **(
                {}
                if known is None
                else {"known_ids": {"counts": [len(ids) for ids in known], "seed": initial_seed}}
            ),
            "files": files,
        },
    )
    return reference


def interaction_columns(interaction: str, width: int, tables: int) -> int:
    """The inputs of the top MLP."""
    if interaction == "dot":
        return -(-(width + tables * (tables + 1) // 2) // 8) * 8
    return width if interaction == "sum" else (tables + 1) * width


def cross_weights(
    generator: np.random.Generator, columns: int, layers: int, rank: int
) -> dict[str, NDArray[Any]]:
    """Random weights of cross layers by name: V, W and bias of each."""
    weights = {}
    for number in range(layers):
        for name, shape in (("v", (columns, rank)), ("w", (rank, columns)), ("bias", (columns,))):
            values = generator.standard_normal(shape) * (2 / (columns + rank)) ** 0.5
            weights[f"cross_{name}_{number}"] = values.astype("<f4")
    return weights


def write_description(folder: Path, content: dict[str, Any]) -> None:
    """Writes artifact.json with the sum of its content."""
    content = {name: value for name, value in content.items() if name != "crc32"}
    content["crc32"] = f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    (folder / "artifact.json").write_text(json.dumps(content, indent=1))


def write_safetensors(path: Path, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Writes a file whose tensors begin at multiples of 64; returns its digest in JSON."""
    header: dict[str, Any] = {}
    data = bytearray()
    for name, value in tensors.items():
        data += b"\0" * (-len(data) % ALIGNMENT)
        end = len(data) + value.nbytes
        header[name] = {
            "dtype": CODES[value.dtype.str],
            "shape": list(value.shape),
            "data_offsets": [len(data), end],
        }
        data += np.ascontiguousarray(value).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    whole = struct.pack("<Q", len(text)) + text + bytes(data)
    path.write_bytes(whole)
    return digest(whole)


def digest(whole: bytes) -> dict[str, Any]:
    """The size of a file and the sums of its blocks, as artifact.json has them."""
    blocks = (whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK))
    sums = "".join(f"{zlib.crc32(block):08x}" for block in blocks)
    return {"bytes": len(whole), "block_bytes": BLOCK, "crc32": sums}


def _encode(
    rows: list[NDArray[Any]], kind: str
) -> tuple[NDArray[Any], list[NDArray[Any]], NDArray[Any] | None]:
    """The stored rows in order of key, the decoded rows of each table, and the tables' scales."""
    if kind == "float32":
        return np.concatenate(rows), [table.astype(np.float64) for table in rows], None
    if kind == "float16":
        halves = [table.astype("<f2") for table in rows]
        return np.concatenate(halves), [table.astype(np.float64) for table in halves], None
    if kind == "int8":
        scales = np.array([np.abs(table).max() / 127.5 for table in rows], "<f4")
        scales[scales == 0] = 1
        stored = [
            np.clip(np.rint(table / scale), -128, 127).astype(np.int8)
            for table, scale in zip(rows, scales)
        ]
        decoded = [q * np.float64(scale) for q, scale in zip(stored, scales)]
        return np.concatenate(stored), decoded, scales
    assert kind == "int8_rows"
    whole = np.concatenate(rows)
    bias = whole.min(1, keepdims=True)
    scale = ((whole.max(1, keepdims=True) - bias) / np.float32(255)).astype("<f4")
    q = np.rint((whole - bias) / np.where(scale == 0, 1, scale)).astype(np.uint8)
    stored_rows = np.concatenate([q, scale.view(np.uint8), bias.view(np.uint8)], axis=1)
    values = q * scale.astype(np.float64) + bias.astype(np.float64)
    ends = np.cumsum([len(table) for table in rows])[:-1]
    return stored_rows, np.split(values, ends), None


def _layers(generator: np.random.Generator, sizes: tuple[int, ...]) -> list[Layer]:
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        deviation = (2 / (inputs + outputs)) ** 0.5
        kernel = (generator.standard_normal((inputs, outputs)) * deviation).astype("<f4")
        layers.append(Layer(kernel, (generator.standard_normal(outputs) * 0.1).astype("<f4")))
    return layers


def _quantise(
    reference: ArtifactReference,
    generator: np.random.Generator,
    vocab_sizes: tuple[int, ...],
    num_dense: int,
) -> None:
    """Makes the layers int8, calibrated on the extremes of random samples."""
    samples = 256
    values = generator.standard_normal((samples, num_dense))
    ids = np.stack([generator.integers(0, size, samples) for size in vocab_sizes], axis=1)
    for layer in reference.bottom:
        values = np.maximum(_quantised(layer, values), 0)
    vectors = [table[column] for table, column in zip(reference.tables, ids.T)]
    values = reference.interaction.forward(np.stack([values, *vectors], axis=1))
    for layer in reference.top:
        values = np.maximum(_quantised(layer, values), 0)


def _quantised(layer: Layer, values: NDArray[Any]) -> NDArray[Any]:
    """Quantises a layer for these inputs; returns its float outputs."""
    outputs = layer(values)
    low, high = np.minimum(values.min(0), 0), np.maximum(values.max(0), 0)
    scale = ((high - low) / 255).astype("<f4")
    # A column that is always 0 gets no weight, which would take the range of the others.
    scaled = layer.kernel * scale[:, None]
    scale[scale == 0] = 1
    kernel_scale = (np.abs(scaled).max(0) / np.float32(127)).astype("<f4")
    kernel_scale[kernel_scale == 0] = 1
    layer.input_scale, layer.kernel_scale = scale, kernel_scale
    layer.input_zero = np.rint(-low / scale).astype("<i4")
    layer.quantised = np.rint(scaled / kernel_scale).astype(np.int8)
    return outputs


def _dense_tensors(reference: ArtifactReference, kind: str) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for mlp, layers in (("bottom", reference.bottom), ("top", reference.top)):
        for index, layer in enumerate(layers):
            if kind == "float32":
                tensors[f"{mlp}_kernel_{index}"] = layer.kernel
                tensors[f"{mlp}_bias_{index}"] = layer.bias
                continue
            assert layer.quantised is not None
            assert layer.kernel_scale is not None
            assert layer.input_scale is not None
            assert layer.input_zero is not None
            tensors[f"{mlp}_kernel_{index}"] = layer.quantised
            tensors[f"{mlp}_bias_{index}"] = layer.bias
            tensors[f"{mlp}_kernel_scale_{index}"] = layer.kernel_scale
            tensors[f"{mlp}_input_scale_{index}"] = layer.input_scale
            tensors[f"{mlp}_input_zero_{index}"] = layer.input_zero
    return tensors


def _dictionary(
    reference: ArtifactReference,
    seed: int,
    vocab_sizes: tuple[int, ...],
    modulus: int | None,
) -> dict[str, NDArray[Any]]:
    """Random values for the ids from 1 on of each table."""
    generator = np.random.default_rng([seed, 2])
    values, ids = [], []
    highest = modulus or 2**32
    for table, size in enumerate(vocab_sizes):
        chosen = np.sort(generator.choice(highest, size - 1, replace=False)).astype(np.int64)
        numbers = generator.permutation(np.arange(1, size, dtype="<i4"))
        reference.dictionaries.append(dict(zip(chosen.tolist(), numbers.tolist())))
        values.append(np.int64(table) << 32 | chosen)
        ids.append(numbers)
    return {"values": np.concatenate(values).astype("<i8"), "ids": np.concatenate(ids)}
