"""The journal of a run of preprocessing, without the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.outputs import Journal, LocalStore

COMMAND = {"rules": "dlrm"}


def test_the_same_command_finds_the_state_that_was_saved(tmp_path: Path) -> None:
    journal = Journal(LocalStore(tmp_path), "out")
    assert journal.begin(COMMAND, restart=False) == {}
    journal.save({"phase": "write"})
    assert Journal(LocalStore(tmp_path), "out").begin(COMMAND, restart=False) == {"phase": "write"}


def test_another_command_or_version_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Journal(store, "out").save({"phase": "write"})
    with pytest.raises(ValueError, match=r"^out: .* with rules=\(absent\), this one has dlrm;"):
        Journal(store, "out").begin(COMMAND, restart=False)
    # As the first version wrote it, which gave no format.
    store.write("partial/state.json", json.dumps({"command": COMMAND, "state": {"phase": "learn"}}))
    with pytest.raises(ValueError, match="another version of this program; .* --restart"):
        Journal(store, "out").begin(COMMAND, restart=False)


def test_restart_discards_the_state(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Journal(store, "out").save({"phase": "write"})
    assert Journal(store, "out").begin(COMMAND, restart=True) == {}
    assert not store.exists("partial")
