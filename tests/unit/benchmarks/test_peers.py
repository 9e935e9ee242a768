"""The comparison with other systems: its arithmetic by hand, its settings, and plain PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.case import DATA, DENSE, ROWS, Trainable, TrainCase, checksum
from benchmarks.peers.plot import plot_peers
from benchmarks.peers.shipped import PRESETS, settings_of, shipped_config
from benchmarks.peers.summary import CaseResult, Difference, PeerResult, Turn, spread
from benchmarks.peers.worker import SYSTEMS, SystemWorker
from benchmarks.shapes import CASES
from dlrm.data import SyntheticSource, write_synthetic
from tests.support.reference_model import ReferenceDLRM

BATCH, STEPS, LEARNING_RATE = 16, 4, 0.5
SIZES, NUM_DENSE, BOTTOM, TOP = (5, 40, 3), 5, (6, 4), (7, 1)
WIDTH, PAIRS, PADDED = 4, 6, 16
PNG = b"\x89PNG"


@pytest.fixture
def case(tmp_path: Path) -> TrainCase:
    """A small model and its files."""
    write_synthetic(tmp_path / DATA, SyntheticSource(SIZES, NUM_DENSE, STEPS * BATCH, seed=1))
    numbers = np.random.default_rng(3)
    dense: dict[str, Any] = {}
    for name, units in (("bottom", (NUM_DENSE, *BOTTOM)), ("top", (PADDED, *TOP))):
        for index, shape in enumerate(zip(units, units[1:])):
            dense[f"{name}_kernel_{index}"] = numbers.normal(size=shape).astype(np.float32)
            dense[f"{name}_bias_{index}"] = numbers.normal(size=shape[1:]).astype(np.float32)
    np.savez(tmp_path / DENSE, **dense)
    np.save(tmp_path / ROWS, numbers.normal(size=(sum(SIZES), WIDTH)).astype(np.float32))
    return TrainCase("tiny", BATCH, str(tmp_path), NUM_DENSE, SIZES, BOTTOM, TOP, LEARNING_RATE)


def trains_as_the_reference(case: TrainCase, build: Callable[..., Trainable], form: str) -> None:
    """Compares the losses of a few steps, and the rows after them, with float64 NumPy's."""
    batches = case.batches()
    tables = np.split(case.rows(), case.first_keys[1:])
    reference = ReferenceDLRM(tables, *case.layers())
    expected = [reference.step(b.dense, b.ids, b.labels, case.lr) for b in batches]
    system = build(case, batches, form)
    seconds, losses = system.train(range(STEPS))
    assert len(seconds) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    ids = batches[0].ids
    rows = np.stack([table[column] for table, column in zip(reference.tables, ids.T)], axis=1)
    np.testing.assert_allclose(system.rows(ids), rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["bags", "tuned", "compiled"])
def test_plain_pytorch_trains_as_the_numpy_model(case: TrainCase, form: str) -> None:
    pytest.importorskip("torch")
    from benchmarks.peers.plain_torch import build

    trains_as_the_reference(case, build, form)


def test_torchrec_trains_as_the_numpy_model(case: TrainCase) -> None:
    pytest.importorskip("torchrec")
    from benchmarks.peers.torchrec_dlrm import build

    trains_as_the_reference(case, build, "")


@pytest.mark.parametrize("form", ["gather", "skip_gather"])
def test_keras_rs_trains_as_the_numpy_model(case: TrainCase, form: str) -> None:
    pytest.importorskip("keras_rs")
    from benchmarks.peers.keras_rs_dlrm import build

    trains_as_the_reference(case, build, form)


def test_a_case_leaves_out_the_padding_of_the_top_kernel(case: TrainCase) -> None:
    _, top = case.layers()
    assert top[0][0].shape == (WIDTH + PAIRS, TOP[0])
    assert case.first_keys.tolist() == [0, 5, 45]
    assert [len(batch.labels) for batch in case.batches()] == [BATCH] * STEPS


def test_the_checksum_sees_every_column(case: TrainCase) -> None:
    batches = case.batches()
    last = batches[-1]
    changed = [
        last._replace(dense=last.dense + 1),
        last._replace(ids=last.ids[::-1]),
        last._replace(labels=1 - last.labels),
    ]
    sums = {checksum([*batches[:-1], other]) for other in (last, *changed)}
    assert len(sums) == len(changed) + 1


def test_ratios_are_those_of_pairs_and_not_of_medians() -> None:
    # The machine was slower in each round: 1, 2 and 4 times.
    pairs = [(Turn(s, 2 * s), Turn(3 * s, 8 * s)) for s in (0.1, 0.2, 0.4)]
    pairs[2] = (pairs[2][0], Turn(2.0, 3.2))
    peer = PeerResult("peer", "1.0", Difference(1e-8, 1e-4), pairs)
    assert peer.ratios == pytest.approx([3, 3, 5])
    assert peer.cpu_ratios == pytest.approx([4, 4, 4])
    assert spread(peer.ratios) == "3.00 (3.00 - 5.00)"


def test_a_turn_is_the_median_of_its_steps_and_their_mean_of_processor_time() -> None:
    assert Turn.of([0.1, 0.9, 0.2], cpu=0.6) == pytest.approx((0.2, 0.2))


def test_differences_are_relative_to_ours() -> None:
    changes = np.array([[0.0, 2.0]]), np.array([[0.1, 2.0]])
    found = Difference.between(([0.5, 1.0], [0.5, 1.1]), changes)
    assert found.losses == pytest.approx(0.1)
    assert found.rows == pytest.approx(0.05)


def a_result() -> CaseResult:
    pairs = [(Turn(0.2, 0.3), Turn(0.5, 0.9)), (Turn(0.1, 0.3), Turn(0.3, 0.9))]
    peer = PeerResult("peer", "1.0", Difference(1e-8, 1e-4), pairs)
    # 6 operations at 60 a second: 0.1 s at least.
    return CaseResult("case", 30, 6, "2.0", [60.0, 50.0, 70.0], [peer])


def test_the_table_has_the_share_of_the_bound_and_the_spread_of_ratios() -> None:
    assert a_result().bound == pytest.approx(0.1)
    text = "\n".join(a_result().lines())
    assert "150.00 ms (100.00 - 200.00)        200 samples/s  0.67 of the bound" in text
    assert "400.00 ms (300.00 - 500.00)         75 samples/s  0.25 of the bound" in text
    assert "ours is 2.75 (2.50 - 3.00) times as fast" in text
    assert "3.00 (3.00 - 3.00) times the processor time" in text
    assert "not quiet" in text


def test_the_picture_is_written(tmp_path: Path) -> None:
    plot_peers(str(tmp_path / "peers.png"), [a_result(), a_result()])
    assert (tmp_path / "peers.png").read_bytes().startswith(PNG)


def test_flags_become_settings() -> None:
    flags = ("--lr=2", "--embedding_dim=16", "--top_mlp=8,1", "--compress", "--noxla", "--amp")
    assert settings_of(flags) == {
        "lr": 2.0,
        "embedding_dim": 16,
        "top_mlp": (8, 1),
        "compress": True,
        "xla": False,
        "amp": True,
    }


@pytest.mark.parametrize("shape", sorted(PRESETS))
def test_ours_is_the_preset_at_a_constant_rate(shape: str) -> None:
    model = CASES[shape].config(64).model
    case = TrainCase(shape, 64, "x", 13, (2,), model.bottom_mlp, model.top_mlp, 0.5)
    config = shipped_config(case)
    assert config.model.custom_interact
    assert not config.model.amp
    assert not config.model.xla
    schedule = config.optimizer.schedule(64)
    assert [schedule.learning_rate(step) for step in (0, 1, 10**6)] == [0.5] * 3
    assert config.data.global_batch_size == 64


def test_every_case_has_a_preset() -> None:
    assert PRESETS.keys() == CASES.keys()


def test_a_peer_that_cannot_run_says_why_in_one_line(case: TrainCase, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such package >&2\nexit 3\n")
    os.chmod(python, 0o755)
    with pytest.raises(ValueError, match=r"^PyTorch ended: no such package$"):
        SystemWorker("torch", case, str(python))


def test_every_peer_has_a_title_of_its_own() -> None:
    assert len({kind.title for kind in SYSTEMS.values()}) == len(SYSTEMS)
