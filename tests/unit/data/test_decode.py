"""`decode`: what is refused, and how it is named."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm.data.decode import check_ids


def test_the_first_id_outside_its_table_is_named() -> None:
    ids = np.array([[4, 0], [4, 3], [-1, 0]], np.int32)
    check_ids("here", 7, ids[:2], (5, 4))
    with pytest.raises(ValueError, match=r"here: sample 8, table 1: expected an id from 0"):
        check_ids("here", 7, ids, (5, 3))
    with pytest.raises(ValueError, match=r"sample 9, table 0: .* found -1; correct vocab_sizes"):
        check_ids("here", 7, ids, (5, 4))
