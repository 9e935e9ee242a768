"""The order of requests: time goes on, the seed decides within a timestamp, passes repeat there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dlrm_v3.benchmark.requests import RequestLibrary
from dlrm_v3.data.stream import RequestStream
from tests.support.hstu_checkpoints import write_stream

pytestmark = pytest.mark.one_profile

HISTORY = 30


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> RequestStream:
    return write_stream(tmp_path_factory.mktemp("stream"))


def library(
    stream: RequestStream, share: float = 1.0, seed: int = 123, queries: int | None = None
) -> RequestLibrary:
    return RequestLibrary(stream, HISTORY, share, seed, queries)


def active(stream: RequestStream) -> list[np.ndarray]:
    config = stream.config
    return [stream.users(t, "inference") for t in range(config.train_timestamps, config.timestamps)]


def run(requests: RequestLibrary) -> list[tuple[int, int]]:
    """The timestamp and the number of each query in the order in which it is run."""
    order = list(itertools.islice(requests.order(), len(requests.sizes)))
    found = []
    for sample in order:
        collated = requests.gather([sample])
        found.append((collated.timestamp, int(collated.numbers[0])))
    return found


def test_one_pass_runs_each_request_once_in_order_of_time(stream: RequestStream) -> None:
    found = run(library(stream))
    sizes = [len(users) for users in active(stream)]
    assert len(sizes) == 2
    assert min(sizes) > 10
    assert [timestamp for timestamp, _ in found] == [0] * sizes[0] + [1] * sizes[1]
    for timestamp, size in enumerate(sizes):
        numbers = [number for t, number in found if t == timestamp]
        assert sorted(numbers) == list(range(size))
        assert numbers != sorted(numbers)


def test_the_seed_alone_decides_the_order(stream: RequestStream) -> None:
    assert run(library(stream)) == run(library(stream))
    assert run(library(stream)) != run(library(stream, seed=124))


def test_a_share_is_of_the_first_users(stream: RequestStream) -> None:
    found = run(library(stream, share=0.5))
    for timestamp, users in enumerate(active(stream)):
        numbers = sorted(number for t, number in found if t == timestamp)
        assert numbers == list(range(len(users) // 2))
    with pytest.raises(ValueError, match=r"none in a share of 0.001 .*--dataset-percentage"):
        library(stream, share=0.001)


def test_more_queries_repeat_the_requests_of_a_timestamp_before_the_next(
    stream: RequestStream,
) -> None:
    one = run(library(stream))
    first, second = ([r for r in one if r[0] == timestamp] for timestamp in (0, 1))
    queries = 2 * len(one) + len(second) + 3
    found = run(library(stream, queries=queries))
    assert len(found) == queries
    assert found == 2 * first + 3 * second + second[:3]


def test_fewer_queries_are_the_first(stream: RequestStream) -> None:
    assert run(library(stream, queries=7)) == run(library(stream))[:7]


def test_a_test_begins_with_the_first_query(stream: RequestStream) -> None:
    requests = library(stream)
    order = requests.order()
    assert list(itertools.islice(order, 3)) == [0, 1, 2]
    requests.load(range(9))
    requests.unload(range(9))
    assert list(itertools.islice(order, 3)) == [0, 1, 2]
    rest = list(itertools.islice(order, len(requests.sizes)))
    assert rest[-3:] == [0, 1, 2]  # after the last one, the first


def test_a_batch_is_what_the_stream_holds(stream: RequestStream) -> None:
    requests = library(stream)
    users = active(stream)[1]
    samples = [len(requests.sizes) - 1, len(requests.sizes) - 4]
    collated = requests.gather(samples)
    assert collated.timestamp == 1
    timestamp = stream.config.train_timestamps + 1
    expected = stream.batch(users[collated.numbers], timestamp, "inference", HISTORY)
    for found, wanted in zip(collated.batch, expected):
        np.testing.assert_array_equal(found, wanted)
    assert requests.sizes[samples].tolist() == expected.targets.tolist()
    assert requests.groups[samples].tolist() == [1, 1]


def test_broken_data_is_named_when_it_is_read(tmp_path: Path) -> None:
    stream = write_stream(tmp_path)
    path = tmp_path / "shards" / "00000" / "candidate_items.bin"
    items = np.fromfile(path, "<i4")
    np.full_like(items, stream.config.items).tofile(path)
    with pytest.raises(ValueError, match="candidate_items.bin") as error:
        run(library(stream))
    assert "\n" not in str(error.value)
