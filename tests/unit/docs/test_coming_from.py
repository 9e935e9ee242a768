"""The page for users of other systems: every flag of the PyTorch DLRM, and how to read its data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dlrm.config import SETTINGS
from dlrm.config.other_flags import INSTEAD, instead_of
from dlrm.data import open_split
from tests.support.processes import ROOT, run

PAGE = ROOT / "docs" / "coming_from.md"

# What their `main.py --help` lists.
THEIR_FLAGS = re.findall(
    r"\w+",
    """
    amp auc_threshold base_device batch_size benchmark_warmup_steps bottom_mlp_sizes dataset
    dataset_subset dataset_type decay_end_lr decay_power decay_start_step decay_steps embedding_dim
    embedding_type epochs hash_indices inference_benchmark_batch_sizes inference_benchmark_steps
    interaction_op load_checkpoint_path log_path loss_scale lr max_steps max_table_size mode
    num_numerical_features optimized_mlp output_dir print_freq save_checkpoint_path seed shuffle
    shuffle_batch_order synthetic_dataset_dir synthetic_dataset_num_entries
    synthetic_dataset_table_sizes test_after test_batch_size test_freq top_mlp_sizes warmup_factor
    warmup_steps
    """,
)


def test_every_flag_of_theirs_has_an_answer() -> None:
    ours = {name for setting in SETTINGS for name in (setting.name, *setting.aliases)}
    assert ours.isdisjoint(INSTEAD)
    assert not [name for name in THEIR_FLAGS if name not in ours and not instead_of(name)]
    assert set(INSTEAD) <= set(THEIR_FLAGS)


def test_the_page_has_every_flag_once() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("### Their flags")[2].partition("###")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(THEIR_FLAGS)


@pytest.mark.parametrize("greatest", [(3, 125, 126, 32765, 32766, 10**6) + (9,) * 20], ids=["all"])
def test_their_split_data_is_read_through_links(greatest: tuple[int, ...], tmp_path: Path) -> None:
    """Written as their programs do: a byte, half precision, the smallest type for each column."""
    theirs, samples, generator = tmp_path / "theirs", 50, np.random.default_rng(1)
    written = {}
    for part in ("train", "test"):
        (theirs / part).mkdir(parents=True)
        labels = generator.integers(0, 2, samples).astype(bool)
        dense = generator.random((samples, 13)).astype(np.float16)
        ids = generator.integers(0, greatest, (samples, 26), endpoint=True)
        ids[0] = greatest
        labels.tofile(theirs / part / "label.bin")
        dense.tofile(theirs / part / "numerical.bin")
        for table, most in enumerate(greatest):
            kinds = (np.int8, np.int16, np.int32)
            kind = next(kind for kind in kinds if most + 1 < np.iinfo(kind).max)
            ids[:, table].astype(kind).tofile(theirs / part / f"cat_{table}.bin")
        written[part] = (dense, ids, labels)
    sizes = {f"_c{14 + table}": most for table, most in enumerate(greatest)}
    (theirs / "model_size.json").write_text(json.dumps(sizes))

    (script,) = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    env = {"DATA": str(tmp_path / "data"), "THEIRS": str(theirs)}
    ended = run(["bash", "-eu", "-c", script], time_limit=60, env=env)
    assert ended.code == 0, ended.output
    for part, expected in written.items():
        source = open_split(tmp_path / "data" / part, per_category=True)
        assert source.vocab_sizes == tuple(most + 1 for most in greatest)
        for found, values in zip(source.read(0, samples), expected):
            np.testing.assert_array_equal(found, values)
