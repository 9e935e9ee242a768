"""The settings of DLRMv3 and their presets, from one for a laptop to the published one.

Plain data: no files, tensors or ranks. Sources: MLPerf Inference v6.0, recommendation/dlrm_v3
(`streaming_synthetic_data.py`, `configs.py`), and its training in facebookresearch's
generative-recommenders (`gin/streaming_100b.gin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, NoReturn

ACTION_WEIGHTS = (1, 2, 4, 8, 16)
"""The weight of a past event by its rating, 1 to 5; each is a bit of its own."""

POSITIVE_RATING = 3.5
"""The least rating whose label is 1."""

_ID_LIMIT, _SEED_LIMIT = 1 << 31, 1 << 63
_MOST_EVENTS = 4096  # of a user and timestamp on average; the generator draws 512 users together


@dataclass(frozen=True)
class StreamConfig:
    """The population whose events are generated, over time.

    Attributes:
        users: Number of users.
        items: Number of items.
        categories: Number of categories; each has `items // categories` items in a row.
        categories_per_user: Number of categories that a user is interested in.
        timestamps: Number of timestamps.
        train_timestamps: Number of timestamps for training; the rest is for inference.
        events_per_item: Number of events of an item, on average.
        user_share: Probability that a user is active at a timestamp.
        candidates: Candidates of a request in training and evaluation.
        inference_candidates: Candidates of a request at inference.
        shards: Number of shards into which the users are cut.
        written_shards: Number of shards that are written, the first ones.
        step_seconds: Seconds from one timestamp to the next. Taste drifts with a period of eight
            timestamps, so with three hours it follows the time of day.
        seed: The same seed gives the same bytes.

    Raises:
        ValueError: A setting is out of its range.
    """

    users: int
    items: int
    categories: int
    timestamps: int
    train_timestamps: int
    candidates: int
    inference_candidates: int
    shards: int
    written_shards: int
    categories_per_user: int = 4
    events_per_item: int = 50
    user_share: float = 0.7
    step_seconds: int = 10_800
    seed: int = 1001

    def __post_init__(self) -> None:
        for setting in fields(self):
            low = {"seed": 0, "events_per_item": 0}.get(setting.name, 1)
            if setting.name != "user_share" and getattr(self, setting.name) < low:
                self._refuse(setting.name, f"at least {low}")
        if not 0 < self.user_share <= 1:
            self._refuse("user_share", "a number in (0, 1]")
        for name in ("users", "items"):
            if getattr(self, name) >= _ID_LIMIT:
                self._refuse(name, f"fewer than {_ID_LIMIT:,}, the ids of 32 bits")
        if self.seed >= _SEED_LIMIT:
            self._refuse("seed", f"less than {_SEED_LIMIT:,}")
        for name, most in (
            ("categories_per_user", "categories"),
            ("written_shards", "shards"),
            ("candidates", "inference_candidates"),
        ):
            if getattr(self, name) > getattr(self, most):
                self._refuse(name, f"at most {most} ({getattr(self, most)})")
        if self.train_timestamps >= self.timestamps:
            self._refuse("train_timestamps", f"fewer than timestamps ({self.timestamps})")
        if self.users % self.shards:
            self._refuse("shards", f"a divisor of users ({self.users})")
        if self.items % self.categories:
            self._refuse("items", f"a multiple of categories ({self.categories})")
        if self.items_per_category < self.timestamps:
            # The catalogue grows by a share of 1 / timestamps each time.
            self._refuse(
                "items", f"at least categories * timestamps ({self.categories * self.timestamps})"
            )

        if self.events_per_step > _MOST_EVENTS:
            bound = _MOST_EVENTS * self.users * self.timestamps // self.items
            self._refuse(
                "events_per_item", f"at most {bound} for {self.users} users of {self.items} items"
            )

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)}")

    @property
    def items_per_category(self) -> int:
        """Number of items of a category."""
        return self.items // self.categories

    @property
    def events_per_step(self) -> int:
        """Number of events of an active user at a timestamp, on average."""
        return self.items * self.events_per_item // (self.users * self.timestamps)


@dataclass(frozen=True)
class HstuConfig:
    """The shape of the model.

    Attributes:
        width: Values of an embedding row, and of a position's state.
        layers: Number of HSTU layers.
        heads: Number of attention heads.
        attention_dim: Values of a head's query and key.
        value_dim: Values of a head's value.
        hidden: Units of the hidden layer of the preprocessors.
        max_history: Most events of a history; older ones are left out.
        min_history_for_user: Histories shorter than this see zeros in place of the user's vector.
        position_buckets: Number of position vectors.
        time_buckets: Number of time vectors.
        action_dim: Values of an action bit's vector.
        input_dropout: Share of the values that are dropped before the first layer.
        output_dropout: Share of the values that are dropped in each layer's output.
        group_norm: Whether attention's output is normalised by head instead of as a whole.
        user_rows: Rows of the users' table; 0 for as many as there are users.
        table_range: Rows start uniformly in [-table_range, table_range).
        tasks: Names of the tasks, each with a head: `rating` (is it 3.5 or more; binary) and
            `stars` (the rating itself; regression).
        task_weight: Factor on the loss.
    """

    width: int
    layers: int
    heads: int
    attention_dim: int
    value_dim: int
    hidden: int
    max_history: int
    min_history_for_user: int = 20
    position_buckets: int = 8192
    time_buckets: int = 2048
    action_dim: int = 8
    input_dropout: float = 0.2
    output_dropout: float = 0.1
    group_norm: bool = False
    user_rows: int = 0
    table_range: float = 1.0
    tasks: tuple[str, ...] = ("rating",)
    task_weight: float = 0.2


@dataclass(frozen=True)
class LearningConfig:
    """How the model is trained.

    Attributes:
        global_batch_size: Requests of a step, over all ranks.
        dense_lr: Learning rate of Adam, for the dense weights.
        dense_betas: Decay rates of Adam's two means.
        dense_epsilon: Least denominator of Adam.
        table_lr: Learning rate of row-wise Adagrad, for the tables.
        table_epsilon: Least denominator of row-wise Adagrad.
        eval_batches: Most batches of an evaluation; 0 for all.
    """

    global_batch_size: int = 64
    dense_lr: float = 1e-3
    dense_betas: tuple[float, float] = (0.95, 0.999)
    dense_epsilon: float = 1e-8
    table_lr: float = 1e-3
    table_epsilon: float = 1e-8
    eval_batches: int = 500


class Preset(NamedTuple):
    """Settings that belong together."""

    stream: StreamConfig
    model: HstuConfig
    learning: LearningConfig


_TINY_MODEL = HstuConfig(
    width=64,
    layers=2,
    heads=2,
    attention_dim=32,
    value_dim=32,
    hidden=64,
    max_history=256,
    position_buckets=512,
    time_buckets=256,
    # One pass over few data: nothing is seen twice that could be learned by heart.
    input_dropout=0.0,
    output_dropout=0.0,
    # An item has some thirty labels, which must outweigh the values that its row starts with.
    table_range=0.02,
    # A rating says more than whether it is a good one, and of few events everything counts.
    tasks=("rating", "stars"),
)
_TINY_LEARNING = LearningConfig(dense_lr=5e-4, table_lr=0.02)
_PUBLISHED_MODEL = HstuConfig(
    width=512,
    layers=5,
    heads=4,
    attention_dim=128,
    value_dim=128,
    hidden=256,
    max_history=16_384,
    user_rows=10_000_000,
)


_PUBLISHED_STREAM = StreamConfig(
    users=5_000_000,
    items=1_000_000_000,
    categories=128,
    timestamps=100,
    train_timestamps=90,
    candidates=32,
    inference_candidates=2048,
    shards=100,
    written_shards=100,
)

PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(
        StreamConfig(
            users=2_000,
            items=20_000,
            categories=16,
            timestamps=20,
            train_timestamps=18,
            candidates=24,
            inference_candidates=64,
            shards=4,
            written_shards=4,
        ),
        _TINY_MODEL,
        replace(_TINY_LEARNING, global_batch_size=16),
    ),
    "small": Preset(
        StreamConfig(
            users=20_000,
            items=200_000,
            categories=16,
            timestamps=20,
            train_timestamps=18,
            candidates=24,
            inference_candidates=64,
            shards=20,
            written_shards=20,
        ),
        _TINY_MODEL,
        _TINY_LEARNING,
    ),
    "sampled": Preset(
        replace(_PUBLISHED_STREAM, written_shards=1), _PUBLISHED_MODEL, LearningConfig()
    ),
    "streaming-100b": Preset(_PUBLISHED_STREAM, _PUBLISHED_MODEL, LearningConfig()),
}
"""From two minutes on a laptop (tiny) to the published size, whose first shard is `sampled`."""
