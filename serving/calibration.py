"""Calibration: the range of the values that reach each layer, seen on training samples.

`calibrate` runs samples through the float32 model. What it finds is kept in a file, so that the
same weights can be exported again without the samples; it fits no other weights. How ranges are
chosen is the concern of `serving.ranges`, what is made of them that of `serving.dense_int8`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape, read_manifest
from dlrm.formats.json_files import read_json_object, sum_of_json, write_json_object
from serving.checkpoint_samples import CheckpointSamples, ModelSamples
from serving.dense_model import LOGITS, DenseModel, layer_names
from serving.dense_weights import read_dense
from serving.ranges import METHODS

FORMAT = 1

_REMEDY = "make it with `python3 -m serving calibrate CHECKPOINT DATA OUT`"


class ColumnRanges(NamedTuple):
    """The range of each column of a layer's input.

    Attributes:
        low: The least value, float32 [I].
        high: The greatest value, float32 [I].
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """The ranges of the inputs of all layers, and what they were seen on.

    Attributes:
        model: The shape of the model.
        step: Training steps done when the weights were saved.
        weights: The checksum of the dense weights, from `sum_of_weights`.
        data: The fingerprint of the data.
        samples: Number of samples that were seen.
        method: How the ranges were chosen, a name in `serving.ranges.METHODS`.
        ranges: The ranges of each layer's input, by the layer's name such as `top_0`.
    """

    model: ModelShape
    step: int
    weights: str
    data: str
    samples: int
    method: str
    ranges: Mapping[str, ColumnRanges]

    def write(self, path: Path) -> None:
        """Writes the file, complete or not at all."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        content["ranges"] = {
            layer: {side: values.tolist() for side, values in ranges._asdict().items()}
            for layer, ranges in self.ranges.items()
        }
        content["crc32"] = sum_of_json(content)
        write_json_object(path, content)

    def check(self, weights: Mapping[str, NDArray[Any]], model: ModelShape) -> None:
        """Checks that the ranges were seen with these weights.

        Args:
            weights: The kernels and biases of all layers, by name.
            model: The shape of the model.

        Raises:
            ValueError: They were seen with others.
        """
        found = sum_of_weights(weights)
        if self.model != model or self.weights != found:
            raise ValueError(
                f"expected a calibration of this checkpoint's dense weights ({found}), found one "
                f"of others ({self.weights}, step {self.step}); make a new one with "
                "`python3 -m serving calibrate`"
            )


def read_calibration(path: Path) -> Calibration:
    """Reads a file that `Calibration.write` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no calibration file, damaged, or of another format.
    """
    content = read_json_object(path, _REMEDY)
    try:
        if content.pop("crc32") != sum_of_json(content):
            raise ValueError(
                f"{path}: damaged: its CRC-32 is not the one that was written; {_REMEDY}"
            )
        if (found := content.pop("format")) != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, found {found}; {_REMEDY}")
        model = ModelShape.from_json(content.pop("model"))
        ranges = {
            layer: ColumnRanges(*(np.array(sides[side], np.float32) for side in ("low", "high")))
            for layer, sides in content.pop("ranges").items()
        }
        return Calibration(model=model, ranges=ranges, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a calibration file, found another (missing or malformed {error}); "
            f"{_REMEDY}"
        ) from None


def sum_of_weights(weights: Mapping[str, NDArray[Any]]) -> str:
    """CRC-32 of weights in the order of their names, as eight hexadecimal digits."""
    crc = 0
    for name in sorted(weights):
        values = np.ascontiguousarray(weights[name], "<f4").reshape(-1)
        crc = zlib.crc32(values.view(np.uint8).data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def calibrate(checkpoint: Path, data: Path, samples: int, method: str) -> Calibration:
    """Runs samples through a checkpoint's model and chooses a range for each column.

    The samples are pieces at equal distances in the data, so that all of its time counts. In memory
    are the rows that they name, each once.

    Args:
        checkpoint: The checkpoint, of any number of ranks.
        data: The split folder of the training samples.
        samples: How many of them are used at most.
        method: A name in `serving.ranges.METHODS`.

    Raises:
        ValueError: The data is malformed or does not fit the model, or the checkpoint is damaged or
            has no dense weights.
        OSError: A file cannot be read.
    """
    if samples < 1:
        raise ValueError(f"--samples: expected at least 1, found {samples}")
    manifest = read_manifest(checkpoint)
    weights = read_dense(checkpoint, manifest)
    source = ModelSamples(data, manifest.model)
    pieces = source.pieces(samples)
    seen = sum(stop - start for start, stop in pieces)
    chooser = METHODS[method](seen)
    model = DenseModel(weights, manifest.model)
    inputs = CheckpointSamples(checkpoint, manifest, source, pieces)
    for _ in range(chooser.passes):
        for dense, vectors, _labels in inputs:
            for layer, values in model.steps(dense, vectors):
                if layer != LOGITS:
                    chooser.see(layer, values)
        chooser.end_pass()
    ranges = {layer: ColumnRanges(*chooser.ranges(layer)) for layer in layer_names(manifest.model)}
    return Calibration(
        manifest.model,
        manifest.position.step,
        sum_of_weights(weights),
        source.fingerprint,
        seen,
        method,
        ranges,
    )
