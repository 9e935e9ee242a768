"""The scorer against float64 NumPy: every type, instruction set and batch size."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import scorer_library
from serving.scorer import Lookups, Scorer
from tests.support.artifacts import DENSE, TABLES, ArtifactReference, write_artifact
from tests.support.processes import ROOT, run
from tests.support.scoring import SEED, SHAPE, opened, samples

LEVELS = tuple(scorer_library.LEVELS)
BATCHES = (0, 1, 2, 3, 17, 64, 65, 500)
BOUND = 1e-5


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


def assert_varied(logits: Any) -> None:
    """Units that are always 0 would hide what the layers before them do."""
    assert np.std(logits) > 0.01


def assert_close(logits: Any, expected: Any) -> None:
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tables", TABLES)
def test_logits_are_those_of_float64(tmp_path: Path, tables: str, level: str) -> None:
    reference = write_artifact(tmp_path / "a", tables=tables, **SHAPE)
    with opened(tmp_path / "a", level=level) as scorer:
        for batch in BATCHES:
            dense, ids = samples(reference, batch)
            expected = reference.logits(dense, ids)
            assert_close(scorer.score(dense, ids), expected)
        assert_varied(expected)


@pytest.mark.parametrize("width", [1, 2, 7, 16, 33])
def test_any_width_of_vectors(tmp_path: Path, width: int) -> None:
    for tables in TABLES:
        reference = write_artifact(
            tmp_path / tables, (5, 9), width, 1, (1, width), (1,), tables=tables
        )
        dense, ids = samples(reference, 40)
        for level in scorer_library.levels():
            with opened(tmp_path / tables, level=level) as scorer:
                assert_close(scorer.score(dense, ids), reference.logits(dense, ids))


def float32_logits(reference: ArtifactReference, dense: Any) -> Any:
    """The logits of int8 layers in float32, operation by operation, where all rows are zero."""
    one, zero = np.float32(1), np.float32(0)
    values = dense

    def layer(part: Any, values: Any) -> Any:
        q = np.clip(np.rint(values * (one / part.input_scale)) + part.input_zero, 0, 255)
        sums = (q.astype(np.int64) - part.input_zero) @ part.quantised.astype(np.int64)
        return sums.astype(np.float32) * part.kernel_scale + part.bias

    for part in reference.bottom:
        values = np.maximum(layer(part, values), zero)
    columns = len(reference.top[0].kernel) - values.shape[1]
    values = np.pad(values, [(0, 0), (0, columns)])
    for part in reference.top[:-1]:
        values = np.maximum(layer(part, values), zero)
    return layer(reference.top[-1], values)[:, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_int8_layers_compute_the_same_bits_on_every_level(tmp_path: Path, level: str) -> None:
    reference = write_artifact(tmp_path / "a", dense="int8", largest_row_value=0, **SHAPE)
    with opened(tmp_path / "a", level=level) as scorer:
        for batch in BATCHES:
            dense, ids = samples(reference, batch)
            dense *= np.float32(3)  # beyond the calibrated range, so that some are clipped
            expected = float32_logits(reference, dense)
            np.testing.assert_array_equal(scorer.score(dense, ids), expected)
        assert_varied(expected)


@pytest.mark.parametrize("tables", TABLES)
def test_int8_layers_behind_rows(tmp_path: Path, tables: str) -> None:
    reference = write_artifact(tmp_path / "a", dense="int8", tables=tables, **SHAPE)
    dense, ids = samples(reference, 500)
    with opened(tmp_path / "a") as scorer:
        errors = np.abs(scorer.score(dense, ids) - reference.logits(dense, ids))
    # float32 may round an activation to the neighbouring integer; that is rare.
    assert np.mean(errors < BOUND) > 0.99
    assert errors.max() < 0.02


@pytest.mark.parametrize("dense_type", DENSE)
def test_a_logit_does_not_depend_on_its_batch(tmp_path: Path, dense_type: str) -> None:
    reference = write_artifact(tmp_path / "a", dense=dense_type, **SHAPE)
    dense, ids = samples(reference, 300)
    for level in scorer_library.levels():
        with opened(tmp_path / "a", level=level) as scorer:

            def in_parts(size: int) -> Any:
                parts = [slice(at, at + size) for at in range(0, 300, size)]
                return np.concatenate([scorer.score(dense[p], ids[p]) for p in parts])  # noqa: B023

            small, large = in_parts(1), in_parts(300)
            for size in (2, 3, 5, 14):
                np.testing.assert_array_equal(in_parts(size), small)
            for size in (20, 50, 60, 100, 150):
                np.testing.assert_array_equal(in_parts(size), large)
            if dense_type == "float32" and level == "avx512_amx":
                # Larger requests sum in another order, in the matrix unit.
                np.testing.assert_allclose(small, large, rtol=0, atol=1e-6)
            else:
                np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("dense_type", DENSE)
def test_layers_of_several_panels_and_blocks_of_inputs(tmp_path: Path, dense_type: str) -> None:
    """Wide enough that every tile, panel and part of a layer counts, at each number of rows."""
    reference = write_artifact(
        tmp_path / "a", (50, 9), 40, 7, (150, 40), (70, 33, 1), dense=dense_type
    )
    for batch in (1, 15, 16, 17, 31, 33, 64, 131):
        dense, ids = samples(reference, batch)
        for level in scorer_library.levels():
            with opened(tmp_path / "a", level=level) as scorer:
                errors = np.abs(scorer.score(dense, ids) - reference.logits(dense, ids))
                # float32 may round an int8 layer's input to the neighbouring integer.
                assert np.mean(errors < BOUND) > (0.9 if dense_type == "int8" else 0.9999)
                assert errors.max() < (0.02 if dense_type == "int8" else BOUND)


@pytest.mark.parametrize("tables", TABLES)
def test_hot_and_cold_rows_are_the_same_rows(tmp_path: Path, tables: str) -> None:
    reference = write_artifact(tmp_path / "a", tables=tables, row_order=True, **SHAPE)
    dense, ids = samples(reference, 200)
    expected = reference.logits(dense, ids)
    rows = sum(SHAPE["vocab_sizes"])
    positions = np.fromfile(tmp_path / "a" / "row_order.safetensors", "<i4")[-rows:]
    first = np.cumsum([0, *SHAPE["vocab_sizes"]])[:-1]
    for share in (0, 0.1, 0.5, 1):
        with opened(tmp_path / "a", hot_share=share) as scorer:
            assert_close(scorer.score(dense, ids), expected)
            hot = int((positions[ids + first] < round(share * rows)).sum())
            assert scorer.lookups() == Lookups(hot, ids.size - hot)


def test_all_rows_are_hot_without_an_order(tmp_path: Path) -> None:
    reference = write_artifact(tmp_path / "a")
    dense, ids = samples(reference, 4)
    with opened(tmp_path / "a") as scorer:
        scorer.score(dense, ids)
        assert scorer.lookups() == Lookups(ids.size, 0)
    with pytest.raises(ValueError, match=r"hot_share: expected 1, .*found 0.5"):
        Scorer.open(tmp_path / "a", hot_share=0.5)


@pytest.mark.parametrize("user_tables", [(), (1,), (4, 0, 2), (0, 1, 2, 3), (3, 1, 4, 0, 2)])
def test_candidates_of_one_user(tmp_path: Path, user_tables: tuple[int, ...]) -> None:
    items = [table for table in range(5) if table not in user_tables]
    for tables, dense_type in (("float32", "float32"), ("int8", "int8")):
        folder = tmp_path / tables
        reference = write_artifact(folder, tables=tables, dense=dense_type, **SHAPE)
        with opened(folder) as scorer:
            for count in (0, 1, 5, 300):
                dense, ids = samples(reference, max(count, 1))
                user, ids = ids[0, list(user_tables)], ids[:count]
                whole = ids.copy()
                whole[:, list(user_tables)] = user
                found = scorer.score_candidates(dense[0], user, ids[:, items], user_tables)
                again = scorer.score(np.repeat(dense[:1], count, 0), whole)
                np.testing.assert_allclose(found, again, rtol=BOUND, atol=BOUND)


def test_packed_ids(tmp_path: Path) -> None:
    reference = write_artifact(tmp_path / "a", (300, 70_000, 2, 255, 1), 4)
    dense, ids = samples(reference, 70)
    with opened(tmp_path / "a") as scorer:
        words = scorer.artifact.packing.pack(ids)
        assert words.shape[1] < ids.shape[1]
        np.testing.assert_array_equal(scorer.score_packed(dense, words), scorer.score(dense, ids))


@pytest.mark.parametrize("modulus", [None, 1000])
@pytest.mark.parametrize("missing_is_value", [True, False])
def test_raw_values(tmp_path: Path, modulus: int | None, missing_is_value: bool) -> None:
    reference = write_artifact(
        tmp_path / "a",
        (20, 1, 500),
        4,
        dictionary=True,
        modulus=modulus,
        missing_is_value=missing_is_value,
    )
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    dense = generator.integers(-3, 100, (80, 3), np.int32)
    columns = []
    for known in reference.dictionaries:
        raw = generator.choice([*known, 0, -1, 2**32 - 1, 999, 1000], 80)
        columns.append(raw)
    values = np.stack(columns, axis=1).astype(np.int64)
    logs = np.log(np.maximum(dense, 0).astype(np.float32) + np.float32(1))
    with opened(tmp_path / "a") as scorer:
        found = scorer.score_raw(dense, values)
        ids = reference.ids_of(values)
        assert len(np.unique(ids)) > 20
        np.testing.assert_array_equal(found, scorer.score(logs, ids))
        values[3, 2] = 2**32
        with pytest.raises(ValueError, match="sample 3, table 2: .* found 4294967296"):
            scorer.score_raw(dense, values)
        values[3, 2] = -2
        with pytest.raises(ValueError, match="sample 3, table 2: .* found -2"):
            scorer.score_raw(dense, values)


def test_arrays_need_not_be_contiguous(tmp_path: Path) -> None:
    reference = write_artifact(tmp_path / "a")
    dense, ids = samples(reference, 9)
    with opened(tmp_path / "a") as scorer:
        found = scorer.score(np.asfortranarray(dense)[::2], ids[::2])
        np.testing.assert_array_equal(found, scorer.score(dense, ids)[::2])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_may_share_a_scorer(tmp_path: Path, threads: int) -> None:
    reference = write_artifact(tmp_path / "a", row_order=True, **SHAPE)
    requests = [samples(reference, size, size) for size in (1, 40, 64, 200, 1000)]
    expected = [reference.logits(*request) for request in requests]
    failures: list[str] = []
    with opened(tmp_path / "a", threads=threads, hot_share=0.3) as scorer:

        def ask() -> None:
            for _ in range(20):
                for request, logits in zip(requests, expected):
                    if not np.allclose(scorer.score(*request), logits, rtol=BOUND, atol=BOUND):
                        failures.append(f"{len(logits)} samples")

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        counts = scorer.lookups()
    assert not failures
    assert sum(counts) == 4 * 20 * sum(ids.size for _, ids in requests)


def test_starts_at_once_with_little_memory(tmp_path: Path) -> None:
    """A process that opens 80 MB and scores: its memory, and how long all but Python takes."""
    write_artifact(tmp_path / "a", (300_000, 12_500), 64, 13, (64,), (64, 1))
    code = (
        "import sys, time; start = time.perf_counter(); from pathlib import Path;"
        "import numpy as np; from serving.scorer import Scorer;"
        "scorer = Scorer.open(Path(sys.argv[1]));"
        "scorer.score(np.zeros((1, 13), 'f4'), np.zeros((1, 2), 'i4'));"
        "print('seconds', time.perf_counter() - start);"
        "print(open('/proc/self/status').read()); print(sorted(sys.modules))"
    )
    ended = run([sys.executable, "-c", code, tmp_path / "a"], time_limit=60)
    assert ended.code == 0, ended.output
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", ended.output)
    (seconds,) = re.findall(r"seconds (\S+)", ended.output)
    print(kilobytes, "kB", seconds, "s")
    for heavy in ("tensorflow", "keras", "numba", "polars"):
        assert f"'{heavy}'" not in ended.output
    assert int(kilobytes) < (80 + 64) * 1000
    assert float(seconds) < 5  # below one second on a machine that does nothing else


@pytest.mark.slow
def test_under_the_sanitizers() -> None:
    ended = run(["make", "--directory=serving/core", "sanitize"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]
    assert "runs" in ended.output


def test_the_library_has_the_levels_that_python_names() -> None:
    header = (ROOT / "serving" / "core" / "scorer.h").read_text(encoding="utf-8")
    names = re.findall(r"^  SCORER_(PORTABLE|AVX\w+)", header, re.MULTILINE)
    assert [name.lower() for name in names] == list(LEVELS)
