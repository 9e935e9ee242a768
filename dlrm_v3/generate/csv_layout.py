"""The reference's CSV files: their names, and which slot of ours each of their fields is.

K.csv has a line for each user of shard K, with four fields for each step: items and ratings of the
candidates, items and ratings of the history. Each field is numbers joined by commas, empty where
the user was not active. The steps come in order of time, so the evaluation's lies between training
and inference. This module must not know our files.
"""

from __future__ import annotations

from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot

OFFSETS = "offset.csv"
"""Of each file, a row: where its lines begin, in bytes."""

REQUESTS, REQUESTS_OFFSETS = "requests_per_ts.csv", "requests_per_ts_offset.csv"
"""The active users of each timestamp, a row each; and where these rows begin, in one row."""

USERS_SO_FAR = "users_cumsum_per_ts.csv"
"""Of each timestamp, a row: the number of active users in all files up to each file."""


def users_file(shard: int) -> str:
    """The name of the file of a shard's users."""
    return f"{shard}.csv"


def active_file(shard: int, timestamp: int) -> str:
    """The name of the file of a shard's users that are active at a timestamp."""
    return f"ts_{shard}_{timestamp}.csv"


def slots_by_field(config: StreamConfig) -> list[int]:
    """Our slots, in the order in which the reference has their fields."""
    train = config.train_timestamps
    return [*range(train + 1), eval_slot(config), *range(train + 1, config.timestamps + 1)]
