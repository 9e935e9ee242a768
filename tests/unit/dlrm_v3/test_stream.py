"""The reader, beside plain slices of the files, and what it says of broken data."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from dlrm.formats.checksums import read_checksums, sum_of, write_checksums
from dlrm_v3.config import StreamConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.layout import COLUMNS, StreamMetadata, write_metadata
from dlrm_v3.data.shard import StreamShard
from dlrm_v3.data.stream import RequestStream, open_stream
from dlrm_v3.data.verify import main as verify
from dlrm_v3.data.verify import verify_shard
from dlrm_v3.generate.run import begin, write_best, write_shards

pytestmark = pytest.mark.one_profile

CONFIG = StreamConfig(
    users=60,
    items=2000,
    categories=16,
    timestamps=6,
    train_timestamps=4,
    candidates=8,
    inference_candidates=40,
    shards=3,
    written_shards=2,
)
SLOTS = CONFIG.timestamps + 2
WRITTEN = 40  # users
PARTS = [("train", 0), ("train", 3), ("eval", 4), ("inference", 4), ("inference", 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "data"
    metadata = StreamMetadata("tiny", CONFIG)
    begin(path, metadata)
    assert list(write_shards(path, metadata, [0, 1], 1)) == [0, 1]
    assert write_best(path, metadata) is not None
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "data"))


def column(folder: Path, shard: int, name: str) -> np.ndarray:
    return np.fromfile(folder / "shards" / f"{shard:05d}" / f"{name}.bin", COLUMNS[name])


def request_by_hand(
    folder: Path, user: int, timestamp: int, part: str
) -> tuple[list[tuple[int, int, float]], list[tuple[int, float, float]]]:
    """Time, item and rating of each event; item, rating and probability of each candidate."""
    shard, row = divmod(user, 20)
    data = {name: column(folder, shard, name) for name in COLUMNS}
    history = [
        (slot * 10_800, int(data["history_items"][place]), float(data["history_ratings"][place]))
        for slot in range(timestamp + 1)
        for place in range(*data["history_offsets"][row * SLOTS + slot :][:2])
    ]
    slot = 7 if part == "eval" else timestamp + 1
    names = ("candidate_items", "candidate_ratings", "candidate_probabilities")
    candidates = [
        (int(data[names[0]][place]), float(data[names[1]][place]), float(data[names[2]][place]))
        for place in range(*data["candidate_offsets"][row * SLOTS + slot :][:2])
    ]
    return history, candidates


def assert_request(
    batch: RequestBatch, number: int, history: list, candidates: list, timestamp: int
) -> None:
    start, end = batch.offsets[number : number + 2]
    middle = end - batch.targets[number]
    first = batch.targets[:number].sum()
    mine = slice(first, first + batch.targets[number])
    now = (timestamp + 1) * 10_800
    assert batch.times[start:end].tolist() == [e[0] for e in history] + [now] * len(candidates)
    assert batch.items[start:end].tolist() == [e[1] for e in history] + [c[0] for c in candidates]
    weights = [(1, 2, 4, 8, 16)[min(max(int(event[2]), 1), 5) - 1] for event in history]
    assert batch.actions[start:end].tolist() == weights + [0] * len(candidates)
    assert middle - start == len(history)
    assert batch.ratings[mine].tolist() == [c[1] for c in candidates]
    assert batch.probabilities[mine].tolist() == [c[2] for c in candidates]


@pytest.mark.parametrize(("part", "timestamp"), PARTS)
@pytest.mark.parametrize(
    ("most_events", "most_candidates"), [(1000, None), (30, 3), (1, 1), (0, 2)]
)
def test_a_batch(
    folder: Path, part: str, timestamp: int, most_events: int, most_candidates: int | None
) -> None:
    stream = open_stream(folder)
    users = np.random.default_rng(1).permutation(stream.users(timestamp, part))
    batch = stream.batch(users, timestamp, part, most_events, most_candidates)
    assert [(name, value.dtype.name) for name, value in batch._asdict().items()] == [
        *(("users", "int32"), ("items", "int32"), ("actions", "int32"), ("times", "int64")),
        *(("offsets", "int32"), ("targets", "int32")),
        *(("ratings", "float32"), ("probabilities", "float32")),
    ]
    assert batch.users.tolist() == users.tolist()
    assert batch.offsets[-1] == len(batch.items) == len(batch.times)
    for number, user in enumerate(users):
        history, candidates = request_by_hand(folder, user, timestamp, part)
        history = history[max(len(history) - most_events, 0) :]
        assert_request(batch, number, history, candidates[:most_candidates], timestamp)


def test_users_are_those_with_candidates(folder: Path) -> None:
    stream = open_stream(folder)
    for part, timestamp in PARTS:
        expected = [u for u in range(WRITTEN) if request_by_hand(folder, u, timestamp, part)[1]]
        assert stream.users(timestamp, part).tolist() == expected
        assert (len(expected) == WRITTEN) == (part == "eval")


def test_a_batch_of_nobody(folder: Path) -> None:
    batch = open_stream(folder).batch(np.empty(0, np.int32), 2, "train", 10)
    assert [len(value) for value in batch] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_threads_read_the_same(folder: Path) -> None:
    stream, found = open_stream(folder), []
    users = stream.users(5, "inference")
    expected = stream.batch(users, 5, "inference", 50)

    def pairs(batch: RequestBatch) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(zip(batch, expected))

    def read() -> None:
        for _ in range(20):
            batch = stream.batch(users, 5, "inference", 50)
            found.append(all((ours == whole).all() for ours, whole in pairs(batch)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_the_fingerprint_is_that_of_the_data(folder: Path, tmp_path: Path) -> None:
    other = StreamMetadata("tiny", dataclasses.replace(CONFIG, seed=7))
    begin(tmp_path, other)
    list(write_shards(tmp_path, other, [0, 1], 1))
    prints = [open_stream(path).fingerprint for path in (folder, folder, tmp_path)]
    assert prints[0] == prints[1] != prints[2]


# Broken data: one line, with the file and the place.


def overwrite(folder: Path, name: str, place: int, value: float) -> Path:
    path = folder / "shards" / "00001" / f"{name}.bin"
    values = np.memmap(path, COLUMNS[name], "r+")
    values[place] = value
    values.flush()
    return path


def message_of(read: object, *arguments: object) -> str:
    with pytest.raises((ValueError, OSError)) as raised:
        read(*arguments)  # type: ignore[operator]
    text = str(raised.value)
    assert "\n" not in text
    return text


def read_all(folder: Path) -> None:
    stream = open_stream(folder)
    for part, timestamp in PARTS:
        stream.batch(stream.users(timestamp, part), timestamp, part, 1000)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_file_that_was_cut(copy: Path, name: str) -> None:
    path = copy / "shards" / "00001" / f"{name}.bin"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size - 1)
    assert f"{path}: expected {size} bytes" in message_of(open_stream, copy)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_file_that_is_missing(copy: Path, name: str) -> None:
    path = copy / "shards" / "00001" / f"{name}.bin"
    path.unlink()
    assert f"{path}: no such file" in message_of(open_stream, copy)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_verify_finds_a_flipped_bit(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "shards" / "00001" / f"{name}.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify([str(copy)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: expected CRC-32")
    assert error.count("\n") == 1


def test_verify_finds_nothing_in_good_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(folder)]) == 0
    assert "2 of 3 shards" in capsys.readouterr().out


def test_verify_finds_requests_that_are_missing(copy: Path) -> None:
    """Checksums that are right do not make data right."""
    shard = copy / "shards" / "00001"
    users = column(copy, 1, "request_users")
    start, end = column(copy, 1, "request_offsets")[2:4]
    absent = sorted(set(range(20, 40)) - set(users[start:end].tolist()))[0]
    users[start:end] = sorted([absent, *users[start + 1 : end].tolist()])
    users.tofile(shard / "request_users.bin")
    sums = read_checksums(shard) or {}
    write_checksums(shard, {**sums, "request_users.bin": sum_of(shard / "request_users.bin")})
    shard_1 = StreamShard(copy, StreamMetadata("tiny", CONFIG), 1)
    message = message_of(verify_shard, shard_1, CONFIG)
    assert "request_users.bin: timestamp 2: expected" in message


def test_an_unknown_item(copy: Path) -> None:
    last = len(column(copy, 1, "candidate_items")) - 1
    for name, place in (("candidate_items", last), ("history_items", 7)):
        for item in (2000, -1):
            path = overwrite(copy, name, place, item)
            message = message_of(read_all, copy)
            assert f"{path}: place {place}: expected items from 0 to 1999, found {item}" in message
            overwrite(copy, name, place, 0)
    read_all(copy)


@pytest.mark.parametrize("rating", [float("nan"), float("inf"), 0.5, 5.5, -1])
def test_a_rating_that_cannot_be(copy: Path, rating: float) -> None:
    path = overwrite(copy, "history_ratings", 3, rating)
    message = message_of(read_all, copy)
    assert f"{path}: place 3: expected ratings from 1 to 5, found {rating}" in message


@pytest.mark.parametrize("kind", ["history", "candidate"])
@pytest.mark.parametrize("value", [-1, 10**9])
def test_events_out_of_order(copy: Path, kind: str, value: int) -> None:
    path = overwrite(copy, f"{kind}_offsets", 3 * SLOTS + 1, value)
    message = message_of(read_all, copy)
    assert f"{path}: place {3 * SLOTS + 1} (user 23): expected an offset from" in message
    assert f"found {value}: events out of order" in message


def test_offsets_that_decrease(copy: Path) -> None:
    offsets = column(copy, 1, "history_offsets")
    path = overwrite(copy, "history_offsets", 4 * SLOTS + 2, offsets[4 * SLOTS] - 1)
    message = message_of(read_all, copy)
    assert f"{path}: place {4 * SLOTS + 2} (user 24): expected an offset from" in message


def test_requests_that_cannot_be(copy: Path) -> None:
    users = column(copy, 1, "request_users")
    path = overwrite(copy, "request_users", 1, users[0])
    assert f"{path}: place 1 (timestamp 0): expected ascending ids" in message_of(read_all, copy)
    path = overwrite(copy, "request_users", 1, 50)
    assert "from 20 to 39, found 50" in message_of(read_all, copy)
    overwrite(copy, "request_users", 1, users[1])
    path = overwrite(copy, "request_offsets", 4, -4)
    assert f"{path}: timestamp 3: expected places in order" in message_of(read_all, copy)


def test_a_request_without_candidates(folder: Path) -> None:
    stream = open_stream(folder)
    absent = sorted(set(range(WRITTEN)) - set(stream.users(2, "train").tolist()))[-1]
    message = message_of(stream.batch, np.array([0, absent]), 2, "train", 10)
    path = folder / "shards" / "00001" / "candidate_offsets.bin"
    assert message.startswith(
        f"{path}: user {absent}, timestamp 2: expected candidates, found none"
    )


def requests(stream: RequestStream, timestamp: int, part: str) -> str:
    messages = {
        message_of(stream.users, timestamp, part),
        message_of(stream.batch, np.array([0]), timestamp, part, 10),
    }
    assert len(messages) == 1
    return messages.pop()


def test_timestamps_and_parts_that_are_not_there(folder: Path) -> None:
    stream = open_stream(folder)
    assert requests(stream, -1, "train").startswith("timestamp: expected one of train, 0 to 3")
    assert "4 to 5, found 3" in requests(stream, 3, "inference")
    assert "4 to 4, found 5" in requests(stream, 5, "eval")
    assert requests(stream, 0, "test").startswith("part: expected train, eval, inference")
    for user in (-1, WRITTEN):
        message = message_of(stream.batch, np.array([user]), 0, "train", 10)
        assert message == f"user: expected an id from 0 to 39, found {user}"


def test_a_shard_that_is_missing(copy: Path) -> None:
    shutil.rmtree(copy / "shards" / "00000")
    path = copy / "shards" / "00000"
    assert message_of(open_stream, copy).startswith(f"{path}: expected 2 shards, found 1 missing")


def test_a_shard_of_other_settings(copy: Path) -> None:
    write_metadata(copy, StreamMetadata("tiny", dataclasses.replace(CONFIG, seed=2)))
    assert "00000/shard.json: settings: expected" in message_of(open_stream, copy)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("events", None, "events is missing"),
        ("label_counts", None, "label_counts is missing"),
        ("label_counts", [[1, 2]], "expected numbers of shape (8, 4, 5, 2), found (1, 2)"),
        ("label_counts", {}, "found (0,)"),
        ("label_counts", [[1], [1, 2]], "found (0,)"),
    ],
)
def test_a_description_that_cannot_be(copy: Path, key: str, value: object, expected: str) -> None:
    path = copy / "shards" / "00001" / "shard.json"
    content = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    message = message_of(write_best, copy, StreamMetadata("tiny", CONFIG))
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('"format": 1|"format": 2', "format: expected 1, found 2"),
        ('"users": 60|"users": "many"', "users: expected a number, found 'many'"),
        ('"users": 60|"users": 61', "shards: expected a divisor of users (61)"),
        ('"users": 60|"people": 60', "expected a preset's name and settings"),
        ('"format": 1|format: 1', "not valid JSON"),
    ],
)
def test_metadata_that_cannot_be(copy: Path, change: str, expected: str) -> None:
    path = copy / "metadata.json"
    text = path.read_text()
    old, _, new = change.partition("|")
    assert old in text
    path.write_text(text.replace(old, new))
    message = message_of(open_stream, copy)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_no_data_at_all(tmp_path: Path) -> None:
    message = message_of(open_stream, tmp_path)
    assert message.startswith(f"{tmp_path / 'metadata.json'}: no such file; write the folder with")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("users", 0), ("user_share", 0.0), ("user_share", 1.5), ("seed", -1), ("shards", 7)),
        *(("written_shards", 4), ("categories_per_user", 17), ("train_timestamps", 6)),
        *(("candidates", 41), ("items", 80), ("items", 2001), ("items", 2**31), ("seed", 2**63)),
        ("events_per_item", 10**6),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    settings = {**dataclasses.asdict(CONFIG), name: value}
    message = message_of(lambda: StreamConfig(**settings))
    assert message.startswith(f"{name}: expected ")
    assert message.endswith(f"found {value}")
