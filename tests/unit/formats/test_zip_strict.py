"""Columns side by side, of one length or not at all."""

from __future__ import annotations

import pytest

from dlrm.formats.zip_strict import zip_strict


def test_equal_lengths() -> None:
    assert list(zip_strict([1, 2], iter("ab"), (None, 0))) == [(1, "a", None), (2, "b", 0)]
    assert list(zip_strict([], [])) == []


@pytest.mark.parametrize("columns", [([1], []), ([], [1]), ([1, 2], [1, 2], [1])])
def test_another_length(columns: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match="of one length, found a shorter one"):
        list(zip_strict(*columns))
