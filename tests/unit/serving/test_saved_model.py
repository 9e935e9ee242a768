"""The SavedModel answers as the trainer does, in every type, order and signature, in any loader."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import (
    DENSE_FILE,
    ModelShape,
    Position,
    read_manifest,
    tables_file,
)
from dlrm.checkpoint.safetensors_file import TensorWriter, write_tensors
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import Config
from dlrm.distributed.collective import Collective
from dlrm.formats.packed_ids import plan
from model import build_model
from serving import saved_model
from serving.artifact import Artifact
from serving.export import ExportOptions, export
from serving.saved_model import variables, write_saved_model
from serving.triton.model_config import ModelOptions, saved_model_config
from tests.support.small_model import (
    NUM_DENSE,
    VOCAB_SIZES,
    WIDTH,
    make_batches,
    reference_of,
    small_step,
    weights_of,
)

UNITS = {"bottom_mlp": (8, WIDTH), "top_mlp": (8, 1)}
SHAPE = ModelShape(NUM_DENSE, VOCAB_SIZES, WIDTH, UNITS["bottom_mlp"], UNITS["top_mlp"])
KEYS = sum(VOCAB_SIZES)
RULES = {
    "rules": "generic",
    "moduli": [None, 10, None],
    "missing_is_value": True,
    "lowest_dense": [0, -1, 5],
    "dense_log_offset": 2.0,
}
# Table, value, id; the values of a table may be any numbers of 32 bits.
ENTRIES = [(0, 0, 6), (0, 2**32 - 1, 2), (1, 3, 0), (2, 0, 17), (2, 7, 9), (2, 8, 49)]


class Trained:
    """A trained model with its checkpoint: what every test of this file starts from."""

    def __init__(self, folder: Path) -> None:
        self.step = small_step()
        settings = Config.of(
            use_synthetic_dataset=True, embedding_dim=WIDTH, amp=True, global_batch_size=64, **UNITS
        )
        record = RunRecord(SHAPE, settings.flat(), {})
        checkpoints = Checkpoints(folder / "checkpoints", Collective(), record, keep=1)
        checkpoints.save(State(self.step.dense, self.step.embedding), Position(7, 0, 0))
        (self.checkpoint,) = (folder / "checkpoints").glob("step-*")
        self.rows = np.concatenate(weights_of(self.step)[: len(VOCAB_SIZES)])  # [K, W]
        self.batch = make_batches(1)[0]
        self._reference = reference_of(self.step)

    def reference(self, dense: Any, ids: Any) -> NDArray[Any]:
        """Logits of any samples, computed apart from TensorFlow in float64."""
        return np.asarray(self._reference.logits(np.asarray(dense), np.asarray(ids)))

    def logits(self, rows: NDArray[Any], dense: Any, ids: Any) -> NDArray[Any]:
        """The trainer's own logits, with these rows in its tables."""
        everything = np.arange(KEYS)
        self.step.embedding.write_rows(everything, rows.astype(np.float32))
        found = self.step.score(dense, ids)[0].numpy()
        self.step.embedding.write_rows(everything, self.rows)
        return np.asarray(found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def make_artifact(
    folder: Path, tensors: dict[str, NDArray[Any]], tables: str, **parts: Any
) -> Artifact:
    """The files of an artifact, written by hand; `parts` holds its order and its dictionary."""
    folder.mkdir()
    files = {"tables.safetensors": write_tensors(folder / "tables.safetensors", tensors)}
    if "order" in parts:
        positions = np.argsort(parts["order"]).astype(np.int32)
        files["row_order.safetensors"] = write_tensors(
            folder / "row_order.safetensors", {"positions": positions}
        )
    if "entries" in parts:
        entries = sorted((table << 32 | value, id_) for table, value, id_ in parts["entries"])
        keys, ids = np.array(entries, np.int64).reshape(-1, 2).T
        files["dictionary.safetensors"] = write_tensors(
            folder / "dictionary.safetensors", {"values": keys, "ids": ids.astype(np.int32)}
        )
    return Artifact(
        folder, SHAPE, tables, "float32", 7, "order" in parts, plan(VOCAB_SIZES),
        parts.get("rules"), files,
    )  # fmt: skip


def encoded(rows: NDArray[Any], tables: str) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """The tensors of the tables' file, and the rows as they must be decoded, float64."""
    if tables == "float32":
        return {"rows": rows}, rows
    if tables == "float16":
        return {"rows": rows.astype(np.float16)}, rows.astype(np.float16).astype(np.float64)
    if tables == "int8":
        parts = np.split(rows, np.cumsum(VOCAB_SIZES)[:-1])
        scales = np.array([np.abs(part).max() / 127.5 for part in parts], np.float32)
        by_row = np.repeat(scales, VOCAB_SIZES)[:, None]
        numbers = np.clip(np.rint(rows / by_row), -128, 127).astype(np.int8)
        return {"rows": numbers, "table_scales": scales}, numbers * by_row.astype(np.float64)
    bias = rows.min(1)
    scale = (rows.max(1) - bias) / np.float32(255)
    numbers = np.rint((rows - bias[:, None]) / scale[:, None]).astype(np.uint8)
    tail = np.stack([scale, bias], 1).astype("<f4").view(np.uint8)
    decoded = numbers * scale[:, None].astype(np.float64) + bias[:, None]
    return {"rows": np.concatenate([numbers, tail], 1)}, decoded


def shuffled(tensors: dict[str, NDArray[Any]], order: Any) -> dict[str, NDArray[Any]]:
    return {**tensors, "rows": tensors["rows"][order]}


def call(loaded: Any, signature: str, **inputs: Any) -> NDArray[Any]:
    """Logits of one signature; the probabilities must be theirs."""
    outputs = loaded.signatures[signature](
        **{name: tf.constant(value) for name, value in inputs.items()}
    )
    assert outputs.keys() == {"logits", "probabilities"}
    logits = outputs["logits"].numpy()
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    return np.asarray(logits)


@pytest.mark.parametrize(
    ("tables", "ordered"),
    [("float32", True), ("float16", False), ("int8", True), ("int8_rows", False)],
)
def test_every_type_and_order_of_rows(
    trained: Trained, tmp_path: Path, tables: str, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 gives the trainer's logits; the others those of a trainer with the decoded rows."""
    monkeypatch.setattr(variables, "PIECE_BYTES", 100)  # several pieces of these small tables
    tensors, decoded = encoded(trained.rows, tables)
    order = np.random.default_rng(3).permutation(KEYS)
    parts = {"order": order} if ordered else {}
    artifact = make_artifact(
        tmp_path / "a", shuffled(tensors, order) if ordered else tensors, tables, **parts
    )
    write_saved_model(trained.checkpoint, artifact, tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    dense, ids = trained.batch.dense, trained.batch.ids
    expected = trained.logits(decoded, dense, ids)
    np.testing.assert_allclose(
        call(loaded, "serving_default", dense=dense, ids=ids), expected, atol=1e-5
    )
    words = plan(VOCAB_SIZES).pack(ids)
    np.testing.assert_allclose(
        call(loaded, "packed", dense=dense, words=words), expected, atol=1e-5
    )
    assert loaded.rows.dtype.size * loaded.rows.shape[1] == tensors["rows"][0].nbytes
    assert len(list((tmp_path / "saved" / "variables").glob("variables.data-*"))) > 3
    names = {path.name for path in (tmp_path / "saved" / "variables").iterdir()}
    assert all(name.startswith("variables.") for name in names), names


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_checkpoints_of_any_number_of_ranks(trained: Trained, tmp_path: Path, ranks: int) -> None:
    """Through the export: the trainer's logits."""
    checkpoint = tmp_path / "step-0000000007"
    shutil.copytree(trained.checkpoint, checkpoint)
    manifest = read_manifest(checkpoint)
    files = {DENSE_FILE: manifest.files[DENSE_FILE]}
    (checkpoint / tables_file(0, 1)).unlink()
    for rank in range(ranks):
        name = tables_file(rank, ranks)
        files[name] = write_tensors(checkpoint / name, {"rows": trained.rows[rank::ranks]})
    dataclasses.replace(manifest, ranks=ranks, files=files).write(checkpoint)
    export(checkpoint, tmp_path / "a", ExportOptions(), print)
    dense, ids = trained.batch.dense, trained.batch.ids
    loaded = tf.saved_model.load(str(tmp_path / "a" / "saved_model"))
    found = call(loaded, "serving_default", dense=dense, ids=ids)
    np.testing.assert_allclose(found, trained.logits(trained.rows, dense, ids), atol=1e-5)


class Saved:
    """A SavedModel with a dictionary, which the tests below ask."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        tensors, _ = encoded(trained.rows, "float32")
        artifact = make_artifact(folder / "a", tensors, "float32", entries=ENTRIES, rules=RULES)
        self.folder = folder / "models" / "dlrm" / "1"
        write_saved_model(trained.checkpoint, artifact, self.folder)
        self.loaded = tf.saved_model.load(str(self.folder))


@pytest.fixture(scope="module")
def saved(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(trained, tmp_path_factory.mktemp("saved"))


# Samples of a log: values, and the ids that the rules and entries above give them.
VALUES = [
    [2**32 - 1, 3, 7],
    [5, 13, 8],  # unknown; 13 modulo 10 is 3
    [-1, -1, -1],  # missing: the value 0
    [0, 23, 1],
]
IDS = [[2, 0, 9], [0, 0, 49], [6, 0, 17], [6, 0, 0]]


def test_raw_values(trained: Trained, saved: Saved) -> None:
    dense = np.array([[0, -7, 3], [1, 2, 9], [7, 0, 100], [2**31 - 1, 5, 5]], np.int32)
    raised = np.maximum(dense, [0, -1, 5])
    units = np.log(raised + 2.0).astype(np.float32)
    expected = call(saved.loaded, "serving_default", dense=units, ids=np.array(IDS, np.int32))
    found = call(saved.loaded, "raw", dense=dense, values=np.array(VALUES, np.int64))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    same = trained.reference(units, IDS)
    np.testing.assert_allclose(found, same, atol=1e-5)


def test_a_missing_value_may_have_id_0_instead(trained: Trained, tmp_path: Path) -> None:
    tensors, _ = encoded(trained.rows, "float32")
    rules = {**RULES, "missing_is_value": False}
    artifact = make_artifact(tmp_path / "a", tensors, "float32", entries=ENTRIES, rules=rules)
    write_saved_model(trained.checkpoint, artifact, tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    dense = np.ones((4, 3), np.int32)
    units = np.log([[3.0, 3.0, 7.0]] * 4)
    expected = trained.reference(units, [*IDS[:2], [0, 0, 0], IDS[3]])
    found = call(loaded, "raw", dense=dense, values=np.array(VALUES, np.int64))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_any_number_of_samples(trained: Trained, saved: Saved) -> None:
    for count in (0, 1, 5):
        dense, ids = trained.batch.dense[:count], trained.batch.ids[:count]
        found = call(saved.loaded, "serving_default", dense=dense, ids=ids)
        np.testing.assert_allclose(found, trained.reference(dense, ids), atol=1e-5)


EXPECTED_ID, EXPECTED_VALUE = "expected an id in", "expected a value of 32 bits or -1, found"


@pytest.mark.parametrize(
    ("signature", "name", "place", "value", "message"),
    [
        ("serving_default", "ids", (2, 1), 1, f"sample 2, table 1: {EXPECTED_ID} [0, 1), found 1"),
        ("serving_default", "ids", (0, 2), -1, f"table 2: {EXPECTED_ID} [0, 50), found -1"),
        ("packed", "words", (3, 0), -1, f"sample 3, table 0: {EXPECTED_ID} [0, 7), found 255"),
        ("serving_default", "dense", (1, 2), np.nan, "sample 1, dense column 2: expected a finite"),
        ("raw", "values", (0, 1), -2, f"sample 0, table 1: {EXPECTED_VALUE} -2"),
        ("raw", "values", (1, 0), 2**32, f"sample 1, table 0: {EXPECTED_VALUE} 4294967296"),
    ],
)
def test_bad_input_is_refused_and_the_next_is_answered(
    trained: Trained, saved: Saved, signature: str, name: str, place: Any, value: Any, message: str
) -> None:
    batch = trained.batch
    inputs: dict[str, dict[str, Any]] = {
        "serving_default": {"dense": batch.dense, "ids": batch.ids},
        "packed": {"dense": batch.dense, "words": plan(VOCAB_SIZES).pack(batch.ids)},
        "raw": {"dense": np.ones((4, 3), np.int32), "values": np.array(VALUES, np.int64)},
    }
    good = inputs[signature]
    bad = {**good, name: good[name].copy()}
    bad[name][place] = value
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(saved.loaded, signature, **bad)
    assert message in str(caught.value)
    call(saved.loaded, signature, **good)


def test_a_session_as_tensorflow_serving_makes_it(trained: Trained, saved: Saved) -> None:
    """TensorFlow Serving runs the operations named in the signatures, after that which restores."""
    dense, ids = trained.batch.dense, trained.batch.ids
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(saved.folder))
        assert {"serving_default", "packed", "raw"} < meta.signature_def.keys()
        signature = meta.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        feeds = {signature.inputs["dense"].name: dense, signature.inputs["ids"].name: ids}
        logits = session.run(signature.outputs["logits"].name, feeds)
        np.testing.assert_allclose(logits, trained.reference(dense, ids), atol=1e-5)
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="sample 0, table 0: expected an id"
        ):
            session.run(
                signature.outputs["logits"].name, {**feeds, signature.inputs["ids"].name: ids + 50}
            )


def test_another_model_py_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(tmp_path / "a", encoded(trained.rows, "float32")[0], "float32")
    wider = {"bottom_mlp": (9, WIDTH)}
    monkeypatch.setattr(
        saved_model, "build_model", lambda config: build_model(config.replace(**wider))
    )
    with pytest.raises(ValueError, match=r"weight bottom_kernel_0 of shape \[3, 9\], .*\[3, 8\]"):
        write_saved_model(trained.checkpoint, artifact, tmp_path / "saved")


def test_a_flipped_byte_is_refused(trained: Trained, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", encoded(trained.rows, "float32")[0], "float32")
    path = tmp_path / "a" / "tables.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tables.safetensors: damaged between offsets 0 and"):
        write_saved_model(trained.checkpoint, artifact, tmp_path / "saved")


def test_tritons_configuration_has_the_tensors_of_the_signature(saved: Saved) -> None:
    config = saved_model_config("dlrm", SHAPE, ModelOptions())
    tensors = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (\d+) \](.*) \}', config)
    configured = {
        name: (kind, [None] if "shape: [ ]" in more else [None, int(columns)])
        for name, kind, columns, more in tensors
    }
    kinds = {tf.float32: "FP32", tf.int32: "INT32"}
    signature = saved.loaded.signatures["serving_default"]
    _, inputs = signature.structured_input_signature
    specs = {**inputs, **signature.structured_outputs}
    assert configured == {
        name: (kinds[spec.dtype], spec.shape.as_list()) for name, spec in specs.items()
    }


def test_the_memory_is_bounded(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of 200 MB are written within a quarter of that."""
    monkeypatch.setattr(variables, "PIECE_BYTES", 4 << 20)
    rows = 200_000_000 // (4 * WIDTH)
    shape = dataclasses.replace(SHAPE, vocab_sizes=(rows - 51, 1, 50))
    (tmp_path / "a").mkdir()
    spec = {"rows": (np.dtype(np.float32), (rows, WIDTH))}
    block = np.zeros((rows // 100, WIDTH), np.float32)
    with TensorWriter(tmp_path / "a" / "tables.safetensors", spec) as writer:
        for first in range(0, rows, len(block)):
            writer.write(block[: rows - first] + np.float32(first))
        files = {"tables.safetensors": writer.finish()}
    artifact = Artifact(
        tmp_path / "a", shape, "float32", "float32", 7, False, plan(shape.vocab_sizes), None, files
    )
    clear_peak()
    before = peak_bytes()
    write_saved_model(trained.checkpoint, artifact, tmp_path / "saved")
    growth = peak_bytes() - before
    print(f"{growth >> 20} MB more")
    assert growth < 50 << 20
    stored = tf.train.load_checkpoint(str(tmp_path / "saved" / "variables" / "variables"))
    entry = "rows/.ATTRIBUTES/VARIABLE_VALUE"
    assert stored.get_variable_to_shape_map()[entry] == [rows, WIDTH]


def clear_peak() -> None:
    """Makes the kernel begin anew with the most memory that this process held."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
