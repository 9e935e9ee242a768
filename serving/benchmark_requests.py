"""The requests of the inference benchmark: test samples in the forms that trainer and servers take.

What answers them, and how fast, is no concern of this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlrm.data import Data
from dlrm.data.batch import FloatArray, Ids
from dlrm.data.decode import check_ids
from dlrm.formats.bags import Bags
from serving.id_columns import IdColumns, SampleIds


class Request(NamedTuple):
    """Samples that are scored together: what a variant takes of them.

    Attributes:
        dense: float32 [B, D].
        ids: As data has them, for the trainer: int32 [B, T], or bags of them.
        columns: As servers take them.
    """

    dense: FloatArray
    ids: Ids
    columns: SampleIds


class Samples(NamedTuple):
    """Test samples.

    Attributes:
        dense: float32 [n, D].
        ids: The columns of their ids, [n, C].
        columns: What the columns are.
    """

    dense: FloatArray
    ids: SampleIds
    columns: IdColumns

    def requests(self, batch_size: int, count: int) -> list[Request]:
        """Cuts at most `count` requests of `batch_size` samples, at least one.

        Too few samples are taken again and again.
        """
        distinct = max(1, min(count, len(self.dense) // batch_size))
        rows = np.arange(distinct * batch_size).reshape(distinct, batch_size) % len(self.dense)
        parts = [self.ids.rows(row) for row in rows]
        return [
            Request(self.dense[row], self.columns.data_of(part), part)
            for row, part in zip(rows, parts)
        ]


def take(data: Data, count: int) -> Samples:
    """The first `count` samples of the test data, or all of them if there are fewer."""
    columns = IdColumns.of_data(len(data.vocab_sizes), data.bag_layout)
    dense: list[FloatArray] = []
    ids: list[SampleIds] = []
    left = count
    for batch in data.test:
        check_ids("the test data", batch.first, batch.ids, data.vocab_sizes)
        valid = min(batch.valid, left)
        found = batch.ids
        if isinstance(found, Bags):  # padding has no ids, not even in tables of one
            found = found._replace(lengths=found.lengths[:, : batch.valid])
        dense.append(batch.dense[:valid])
        ids.append(columns.lay_out(found).rows(slice(valid)))
        left -= valid
        if not left:
            break
    return Samples(np.concatenate(dense), SampleIds.join(ids), columns)
