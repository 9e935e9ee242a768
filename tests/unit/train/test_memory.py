"""What the memory plan counts, against hand-worked numbers and a real process."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dlrm.distributed import devices, host_memory
from dlrm.embedding import dynamic_capacity
from dlrm.formats.quantities import GIB
from dlrm.layers.interaction_shape import InteractionShape
from dlrm.train.memory import Need, dynamic_needs, require, step_need


def test_a_hand_worked_step() -> None:
    sizes: dict[str, Any] = {"rows": 1000, "tables": 2, "width": 4, "local_batch": 10}
    sizes.update(value_bytes=2)
    sizes.update(num_dense=3, bottom=(8, 4), top=(5, 1))
    need = step_need(**sizes, state_width=0)
    assert need.table == 1000 * 4 * 4
    # 20 vectors of 4 values, twice in float32 and twice in 2 bytes, and 64 bytes of keys and
    # positions each.
    assert need.exchange == 20 * (4 * (8 + 4) + 64)
    with_state = step_need(**sizes, state_width=3)
    assert with_state.table == 1000 * (4 + 3) * 4
    # The state of 20 rows before the update, after it and as it is written.
    assert with_state.exchange == need.exchange + 20 * 3 * 12
    # 3 x 3 products and 3 x 4 stacked values; 12 + 6 outputs; kernels 3 x 8, 8 x 4, 8 x 5 (of which
    # 7 + 1 of padding) and 5 x 1, and 18 biases.
    assert need.dense == 10 * (9 + 12 + 18) * 2 + (24 + 32 + 40 + 5 + 18) * 12
    adam = step_need(**sizes, state_width=0, dense_state=2)
    assert adam.dense == need.dense + (24 + 32 + 40 + 5 + 18) * 8
    assert need.total == need.table + need.exchange + need.dense

    crossed = step_need(**sizes, state_width=0, interaction=InteractionShape("dcnv2", 2, 3))
    # Of 3 x 4 values: themselves, and of each layer 3 in the middle and 12 twice; two matrices of
    # 12 x 3 and 12 biases each.
    activations, weights = 12 + 2 * (3 + 24), 2 * (2 * 36 + 12)
    kernels = 24 + 32 + 12 * 5 + 5 + 18
    assert crossed.dense == 10 * (activations + 18) * 2 + (weights + kernels) * 12
    assert crossed.exchange == need.exchange


def test_what_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    need = Need(table=10 * GIB, exchange=GIB, dense=GIB)
    require(need, 12 * GIB, memory="there", rows=7, ranks=2)
    require(need, None, memory="there", rows=7, ranks=2)
    with pytest.raises(ValueError, match="too little") as caught:
        require(need, 6 * GIB, memory="there", rows=7, ranks=2, remedy="; or else")
    text = str(caught.value)
    assert text.startswith("there: expected 12.00 GiB free for 10.00 GiB of 7 rows")
    assert "found 6.00 GiB, 6.00 GiB too little" in text
    # 20 GiB of rows in all, 4 GiB a rank beside the rest.
    assert text.endswith("5 ranks with as much each would hold them; or else")
    with pytest.raises(ValueError, match="smaller --global_batch_size"):
        require(need, GIB, memory="there", rows=7, ranks=2)


def test_a_dynamic_table_lies_in_both_memories() -> None:
    static = Need(table=1, exchange=3 * GIB, dense=GIB)
    slots = dynamic_capacity(40_000_000)
    assert slots == 1 << 27  # the power of two from 80 million on
    gpu, host = dynamic_needs(static, slots=slots, width=16, gpu_bytes=2 * GIB)
    assert gpu.table - 2 * GIB == 20 * slots
    assert gpu.exchange == static.exchange
    assert host.total == 6 * GIB  # of 8, 64 bytes a row


def test_free_memory_of_the_host_is_what_a_process_can_take() -> None:
    free = host_memory.free_host_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = devices.free_memory(4)
    assert shared is not None
    assert shared < free / 2


def test_free_memory_within_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    for limit, expected in (("5000000\n", 3000000), ("max\n", None)):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("2000000\n")
        free = host_memory.free_host_memory()
        assert free is not None
        assert free == expected if expected else free > 3000000


def test_free_memory_of_the_gpu_that_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho 81038\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices._free_gpu_memory(1) == 81038 << 20
    assert "--id=5 --query-gpu=memory.free" in (tmp_path / "asked").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert devices._free_gpu_memory(0) is None
