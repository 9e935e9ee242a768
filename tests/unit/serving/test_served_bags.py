"""Models whose tables hold bags of ids, scored beside float64 NumPy; and bad bags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dlrm.checkpoint.manifest import ModelShape
from dlrm.formats.bags import Bags
from serving import scorer_library
from serving.export import ExportOptions, export
from serving.id_columns import NO_ID, IdColumns, SampleIds
from serving.scorer import Scorer
from serving.triton.answers import answer
from tests.support.artifacts import TABLES, ArtifactReference, write_artifact
from tests.support.bag_data import TableBags, batch_of
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.processes import run

SEED, BOUND = 211, 1e-5
BATCHES = (1, 3, 17, 65, 300)
SIZES, WIDTH, NUM_DENSE = (60, 3, 5, 20), 12, 5
# Means of up to four ids, one id, at most one id, sums of up to nine.
MAX_IDS, POOLING = (4, 0, 1, 9), ("mean", "sum", "sum", "sum")
COLUMNS = 4 + 1 + 1 + 9
UNITS: dict[str, Any] = {"bottom": (33, WIDTH), "top": (70, 9, 1)}
DCNV2 = {"interaction": "dcnv2", "cross_layers": 2, "cross_rank": 40}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


class Drawn(NamedTuple):
    """Samples: dense features, and the bags of each table in two forms."""

    dense: np.ndarray
    tables: list[TableBags]
    bags: Bags

    def part(self, start: int, stop: int) -> Bags:
        return batch_of(self.tables, start, stop)


def samples(count: int, *, weights: bool = False) -> Drawn:
    """Random samples; ids repeat within bags, and some bags are empty."""
    print("samples of seed", SEED)
    rng = np.random.default_rng(SEED)
    tables = []
    for table, (rows, most, pooling) in enumerate(zip(SIZES, MAX_IDS, POOLING)):
        lengths = rng.integers(0, most + 1, count) if most else np.ones(count, int)
        bags = [rng.integers(0, rows, length).astype(np.int32) for length in lengths]
        factors = [rng.normal(size=length).astype(np.float32) for length in lengths]
        tables.append(TableBags(table, pooling, bags, factors if weights else None))
    dense = rng.standard_normal((count, NUM_DENSE), np.float32)
    return Drawn(dense, tables, batch_of(tables, 0, count))


def artifact(folder: Path, *, weights: bool = False, **settings: Any) -> ArtifactReference:
    return write_artifact(
        folder,
        SIZES,
        WIDTH,
        NUM_DENSE,
        **UNITS,
        pooling=POOLING,
        max_ids=MAX_IDS,
        weighted=weights,
        **settings,
    )


def assert_close(found: Any, expected: Any) -> None:
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("tables", TABLES)
def test_the_scorer_is_that_of_float64_on_every_level(
    tmp_path: Path, tables: str, weights: bool
) -> None:
    reference = artifact(tmp_path / "a", tables=tables, weights=weights)
    drawn = samples(max(BATCHES), weights=weights)
    expected = reference.bag_logits(drawn.dense, drawn.tables)
    for level in scorer_library.levels():
        with Scorer.open(tmp_path / "a", threads=2, level=level) as scorer:
            for batch in BATCHES:
                found = scorer.score(drawn.dense[:batch], drawn.part(0, batch))
                np.testing.assert_allclose(found, expected[:batch], rtol=BOUND, atol=BOUND)
            assert_close(found, expected)
            columns = scorer.columns.lay_out(drawn.bags)
            assert columns.ids.shape == (300, COLUMNS)
            np.testing.assert_array_equal(scorer.score(drawn.dense, *columns), found)
            # What stands for no id may stand anywhere in its table's columns.
            moved = columns.ids.copy()
            moved[:, :4] = moved[:, 3::-1]
            if weights:
                assert columns.weights is not None
                columns.weights[:, :4] = columns.weights[:, 3::-1]
            assert_close(scorer.score(drawn.dense, moved, columns.weights), expected)


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weights"])
def test_cross_layers_int8_layers_and_rows_in_order_of_use(tmp_path: Path, weights: bool) -> None:
    drawn = samples(200, weights=weights)
    reference = artifact(tmp_path / "crossed", weights=weights, row_order=True, **DCNV2)
    with Scorer.open(tmp_path / "crossed", threads=2, hot_share=0.3) as scorer:
        found = scorer.score(drawn.dense, drawn.bags)
        assert_close(found, reference.bag_logits(drawn.dense, drawn.tables))
        hot, cold = scorer.lookups()
        assert min(hot, cold) > 0
        assert hot + cold == len(drawn.bags.ids)
    reference = artifact(tmp_path / "int8", weights=weights, dense="int8", tables="int8")
    with Scorer.open(tmp_path / "int8", threads=2) as scorer:
        errors = scorer.score(drawn.dense, drawn.bags)
    errors -= reference.bag_logits(drawn.dense, drawn.tables)
    assert np.mean(np.abs(errors) < BOUND) > 0.9  # some inputs round to the neighbouring integer
    assert np.abs(errors).max() < 0.1


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("users", [(0, 2), (3,), (1, 0), ()])
def test_candidates_of_one_user(tmp_path: Path, users: tuple[int, ...], weights: bool) -> None:
    reference = artifact(tmp_path / "a", weights=weights)
    drawn = samples(200, weights=weights)
    drawn.dense[:] = drawn.dense[0]
    for table in users:
        drawn.tables[table].bags[:] = [drawn.tables[table].bags[0]] * 200
        if (factors := drawn.tables[table].weights) is not None:
            factors[:] = [factors[0]] * 200
    with Scorer.open(tmp_path / "a", threads=2) as scorer:
        ids, all_weights = scorer.columns.lay_out(batch_of(drawn.tables, 0, 200))
        of = [np.arange(COLUMNS)[scorer.columns.of_table(table)] for table in range(4)]
        mine = np.concatenate([*(of[table] for table in users), np.empty(0, int)])
        others = np.concatenate([of[table] for table in range(4) if table not in users])
        weight = {}
        if all_weights is not None:
            weight = {"user_weights": all_weights[0, mine], "item_weights": all_weights[:, others]}
        found = scorer.score_candidates(
            drawn.dense[0], ids[0, mine], ids[:, others], users, **weight
        )
        bad = ids[:, others].copy()
        bad[7, 0] = 99
        with pytest.raises(ValueError, match=r"candidate 7, table \d: expected an id .* found 99;"):
            scorer.score_candidates(drawn.dense[0], ids[0, mine], bad, users, **weight)
    assert_close(found, reference.bag_logits(drawn.dense, drawn.tables))


def test_bags_of_raw_values(tmp_path: Path) -> None:
    reference = artifact(tmp_path / "a", dictionary=True, missing_is_value=False)
    drawn = samples(40)
    values = np.full((40, COLUMNS), -1, np.int64)
    column = 0
    for of_table, known in zip(drawn.tables, reference.dictionaries):
        value_of = {number: value for value, number in known.items()}
        for sample, ids in enumerate(of_table.bags):
            for place, number in enumerate(ids):
                # Id 0 is that of unknown values.
                values[sample, column + place] = value_of.get(int(number), 2**32 - 1)
        column += max(MAX_IDS[of_table.table], 1)
    values[5, 4] = -1  # a missing value of the table of one id
    drawn.tables[1].bags[5][0] = 0
    raw = np.arange(40 * NUM_DENSE, dtype=np.int32).reshape(40, NUM_DENSE) % 50
    with Scorer.open(tmp_path / "a") as scorer:
        found = scorer.score_raw(raw, values)
        values[3, 5] = 2**32
        with pytest.raises(ValueError, match=f"sample 3, table 2: .* found {2**32};"):
            scorer.score_raw(raw, values)
    assert_close(found, reference.bag_logits(np.log(raw + 1.0), drawn.tables))


def changed(bags: Bags, **parts: Any) -> Bags:
    return bags._replace(
        **{name: change(getattr(bags, name).copy()) for name, change in parts.items()}
    )


def put(place: Any, value: Any) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


BAD_BAGS = {
    "a negative length": (
        {"lengths": put((0, 6), -1)},
        r"sample 6, table 0: expected 0 to 4 ids \(max_ids\), found -1; shorten the bag",
    ),
    "too many ids": (
        {"lengths": put((3, 2), 10)},
        r"sample 2, table 3: expected 0 to 9 ids \(max_ids\), found 10; shorten the bag",
    ),
    "no id where one is needed": (
        {"lengths": put((1, 4), 0)},
        "sample 4, table 1: expected one id, found 0",
    ),
    "tables missing": ({"lengths": lambda a: a[1:]}, r"lengths: expected \[4, samples\], found"),
    "ids missing": ({"ids": lambda a: a[1:]}, r"ids: expected \d+ by the lengths of the bags"),
    "weights missing": ({"weights": lambda a: a[1:]}, r"weights: expected \d+ by the lengths"),
    "a negative id": ({"ids": put(3, -1)}, "ids: expected 0 or more, found -1"),
    "an id outside": ({"ids": put(0, 60)}, "sample 0, table 0: expected an id from 0 to 59, found"),
    "a weight that is none": (
        {"weights": put(-1, np.nan)},
        "sample 9, table 3: expected finite weights, found one that is not, that of id",
    ),
}


@pytest.mark.parametrize("kind", BAD_BAGS)
def test_bad_bags_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    parts, message = BAD_BAGS[kind]
    artifact(tmp_path / "a", weights=True)
    drawn = samples(10, weights=True)
    drawn.tables[0].bags[0] = np.array([1, 2], np.int32)
    drawn.tables[3].bags[9] = np.array([4], np.int32)
    for of_table, sample in ((drawn.tables[0], 0), (drawn.tables[3], 9)):
        assert of_table.weights is not None
        of_table.weights[sample] = np.ones(len(of_table.bags[sample]), np.float32)
    bags = batch_of(drawn.tables, 0, 10)
    with Scorer.open(tmp_path / "a") as scorer:
        with pytest.raises(ValueError, match=message) as caught:
            scorer.score(drawn.dense, changed(bags, **parts))
        assert "\n" not in str(caught.value)
        scorer.score(drawn.dense, bags)


def test_bad_columns_are_refused_in_one_line(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    artifact(tmp_path / "w", weights=True)
    drawn = samples(10)
    with Scorer.open(tmp_path / "a") as scorer, Scorer.open(tmp_path / "w") as weighted:
        ids = scorer.columns.lay_out(drawn.bags).ids
        for column, value, message in (
            (4, NO_ID, "sample 2, table 1: expected an id from 0 to 2, found -1;"),
            (5, -2, "sample 2, table 2: expected an id from 0 to 4, found -2;"),
            (14, 20, "sample 2, table 3: expected an id from 0 to 19, found 20;"),
        ):
            bad = ids.copy()
            bad[2, column] = value
            with pytest.raises(ValueError, match=message):
                scorer.score(drawn.dense, bad)
        factors = np.ones(ids.shape, np.float32)
        with pytest.raises(ValueError, match=r"ids: expected int32 \[10, 15\], found .* \[10, 4"):
            scorer.score(drawn.dense, ids[:, :4])
        with pytest.raises(ValueError, match="weights: expected none, .* found some;"):
            scorer.score(drawn.dense, ids, factors)
        with pytest.raises(ValueError, match="weights: expected some, .* found none;"):
            weighted.score(drawn.dense, ids)
        with pytest.raises(ValueError, match=r"weights: expected .* \[10, 15\], found .* \[9, "):
            weighted.score(drawn.dense, ids, factors[1:])
        with pytest.raises(ValueError, match="words: expected ids in columns"):
            scorer.score_packed(drawn.dense, ids[:, :1])


def test_requests_that_share_a_batch(tmp_path: Path) -> None:
    reference = artifact(tmp_path / "a", weights=True)
    drawn = samples(30, weights=True)
    expected = reference.bag_logits(drawn.dense, drawn.tables)
    with Scorer.open(tmp_path / "a") as scorer:
        columns, scored = scorer.columns.lay_out(drawn.bags), scorer.score(drawn.dense, drawn.bags)

        def request(start: int, stop: int) -> dict[str, Any]:
            part = slice(start, stop)
            return {"dense": drawn.dense[part], **columns.rows(part)._asdict()}

        bad = request(7, 9)
        bad["ids"] = np.full_like(bad["ids"], 99)
        requests = [request(0, 7), bad, request(9, 10), request(10, 30)]
        requests += [{name: requests[0][name] for name in ("dense", "ids")}]
        answers: list[Any] = answer(scorer, requests)
        together: list[Any] = answer(scorer, [request(0, 7), request(7, 9), request(9, 30)])
    np.testing.assert_array_equal(np.concatenate(together), scored)
    assert re.match("sample 0, table 0: expected an id", str(answers[1]))
    assert re.match("weights: expected some", str(answers[4]))
    found = np.concatenate([answers[0], answers[2], answers[3]])
    assert_close(found, np.delete(expected, [7, 8]))


def test_columns_hold_what_bags_hold() -> None:
    drawn = samples(20, weights=True)
    columns = IdColumns(4, MAX_IDS, weights=True)
    back = columns.data_of(columns.lay_out(drawn.bags))
    assert isinstance(back, Bags)
    for ours, theirs in zip(back, drawn.bags):
        np.testing.assert_array_equal(ours, theirs)
    plain = IdColumns(2, (), weights=False)
    ids = np.array([[3, 4]], np.int32)
    assert plain.lay_out(ids) == SampleIds(ids)
    assert plain.data_of(SampleIds(ids)) is ids


def test_a_checkpoint_that_does_not_say_how_many_ids_is_refused(tmp_path: Path) -> None:
    model = ModelShape(NUM_DENSE, SIZES, WIDTH, UNITS["bottom"], UNITS["top"], pooling=POOLING)
    rows = np.zeros((sum(SIZES), WIDTH), np.float32)
    path = write_checkpoint(tmp_path / "c", model, rows, random_weights(model, SEED))
    with pytest.raises(ValueError, match="expected the most ids of each table's bags, found"):
        export(path, tmp_path / "out", ExportOptions(), lambda line: None)
