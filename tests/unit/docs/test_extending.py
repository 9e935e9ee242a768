"""The examples of docs/extending.md, run as they are written there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = "= flag("


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The Python blocks of the page."""
    return BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(blocks: list[str]) -> dict[str, Any]:
    """What the page's blocks define, one after the other, the field of a flag apart."""
    names: dict[str, Any] = {"__name__": "extending"}
    future = "from __future__ import annotations\n"
    for block in blocks:
        if FLAG not in block:
            exec(compile(future + block, "<docs/extending.md>", "exec"), names)
    return names


def test_the_max_interaction(page: dict[str, Any]) -> None:
    bottom = tf.constant([[1.0, 2.0]])
    groups = tf.constant([[[3.0, 4.0]]]), tf.constant([[[5.0, 6.0], [7.0, 8.0]]])
    assert page["max_interaction"](bottom, *groups).numpy().tolist() == [[1, 2, 7, 8]]


def test_the_model_trains_with_the_max_interaction(page: dict[str, Any]) -> None:
    model = page["model"]
    dense, vectors = tf.ones([4, 3]), [tf.ones([4, 2, 8])]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = tf.reduce_sum(model(dense, vectors))
    (gradient,) = tape.gradient(loss, vectors)
    assert gradient.shape == [4, 2, 8]
    # Equal vectors share the gradient of their maximum.
    np.testing.assert_array_equal(gradient[:, 0], gradient[:, 1])
    assert np.abs(gradient).max() > 0


def test_rmsprop(page: dict[str, Any]) -> None:
    before, after = page["before"][0], page["after"][0]
    np.testing.assert_array_equal(before[3:], 0)
    np.testing.assert_allclose(after[3:], 0.25 * 2**2, rtol=1e-6)
    np.testing.assert_allclose(after[:3], before[:3] - 0.5 * 2, rtol=1e-6)


def test_rmsprop_fits_the_interface(page: dict[str, Any]) -> None:
    from dlrm.optim.row_optimizers import RowOptimizer

    assert_has_the_members(page["RowRmsProp"], RowOptimizer)


def test_the_dense_rmsprop(page: dict[str, Any]) -> None:
    from dlrm.optim.dense_optimizers import DenseOptimizer

    optimizer, weight = page["DenseRmsProp"](), tf.Variable([1.0, -1.0])
    optimizer.build({"kernel": weight})
    assert_has_the_members(optimizer, DenseOptimizer)
    # The gradients are 1 and -2 after the scale of a half.
    compiled = tf.function(lambda given: optimizer.apply([given], tf.constant(0.5), 0.5))
    compiled(tf.constant([2.0, -4.0]))
    (square,) = optimizer.state.values()
    np.testing.assert_allclose(square, [0.25 * 1**2, 0.25 * 2**2], rtol=1e-6)
    np.testing.assert_allclose(weight, [1 - 0.5 * 2, -1 + 0.5 * 2], rtol=1e-6, atol=1e-7)


def test_the_storage_trains_as_a_variable_does(page: dict[str, Any]) -> None:
    embedding, table = page["embedding"], page["table"]
    in_variable = embedding.create(
        "alltoall", table, page["Collective"](), optimizer=page["RowRmsProp"]()
    )
    in_array = page["in_array"]
    np.testing.assert_array_equal(in_array.read_rows(0, 10), in_variable.read_rows(0, 10))

    def step_of(tables: Any) -> Any:
        @tf.function
        def step(ids: tf.Tensor, learning_rate: tf.Tensor) -> None:
            lookup = tables.lookup(tables.route(ids))
            tables.update(lookup, [2 * group for group in lookup.vectors], learning_rate)

        return step

    steps = [step_of(tables) for tables in (in_variable, in_array)]
    ids = np.random.default_rng(7).integers(0, (4, 6), (5, 16, 2))
    for batch in ids:
        for step in steps:
            step(tf.constant(batch), tf.constant(0.1))
    trained = in_variable.read_rows(0, 10)
    np.testing.assert_array_equal(in_array.read_rows(0, 10), trained)
    in_array.write_rows(np.array([1, 0]), trained[:2])
    np.testing.assert_array_equal(in_array.read_rows(0, 2), trained[1::-1])


def test_the_storage_fits_the_interface(page: dict[str, Any]) -> None:
    from dlrm.embedding import RowStorage

    assert_has_the_members(page["storage"], RowStorage)


def test_the_source_gives_its_samples(page: dict[str, Any]) -> None:
    from dlrm.data import Source

    source, batches = page["source"], page["batches"]
    assert_has_the_members(source, Source)
    dense, ids, labels = source.read(0, 10)
    assert [batch.first for batch in batches] == [2, 6]
    for batch in batches:
        np.testing.assert_array_equal(batch.dense, dense[batch.first : batch.first + 2])
        np.testing.assert_array_equal(batch.ids, ids[batch.first : batch.first + 2])
        np.testing.assert_array_equal(batch.labels, labels[batch.first : batch.first + 2])


def test_the_flag_is_in_the_help(blocks: list[str], tmp_path: Path) -> None:
    (field,) = (block for block in blocks if FLAG in block)
    for name in ("dlrm", "main.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    config = tmp_path / "dlrm" / "config" / "report.py"
    text = config.read_text(encoding="utf-8")
    title = re.search(r'^class ReportConfig:\n    """.*?"""\n', text, re.MULTILINE | re.DOTALL)
    assert title
    config.write_text(f"{text[: title.end()]}\n    {field}{text[title.end() :]}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "main.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "quiet" in done.stdout, done.stderr
    assert "print nothing but the results table" in done.stdout


def assert_has_the_members(implementation: object, protocol: type) -> None:
    """An example that lacks a method of the interface would only fail where it is called."""
    expected = {name for name in vars(protocol) if not name.startswith("_")}
    expected |= typing.get_type_hints(protocol).keys()
    missing = {name for name in expected if not hasattr(implementation, name)}
    assert not missing
