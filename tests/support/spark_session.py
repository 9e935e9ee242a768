"""One Spark session for the tests of a file, and two results compared byte by byte."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def spark_is_there() -> bool:
    return shutil.which("java") is not None and importlib.util.find_spec("pyspark") is not None


needs_spark = pytest.mark.skipif(
    not spark_is_there(), reason="Spark needs java and requirements/spark.txt"
)
ON_SPARK = (pytest.mark.spark, needs_spark)
ENGINES = ["polars", pytest.param("spark", marks=ON_SPARK)]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """Keeps one session over a module's runs, as starting one takes seconds."""
    if not spark_is_there():
        yield
        return
    from preprocess.engine_spark.spark_session import spark_session

    with spark_session("local[2]") as active:
        # 200 partitions, the default, are for clusters.
        active.conf.set("spark.sql.shuffle.partitions", "4")
        yield


@pytest.fixture
def small_pieces(session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What only large logs have: files in pieces, full hash tables, rare values, many buckets."""
    from pyspark.sql import SparkSession

    from preprocess.engine_spark import lookup, vocabulary, write

    active = SparkSession.getActiveSession()
    assert active is not None
    monkeypatch.setattr(vocabulary, "_VALUES_AT_ONCE", 100)
    monkeypatch.setattr(lookup, "_HOT_VALUES", 60)
    monkeypatch.setattr(write, "_BUCKET_BYTES", 2000)
    active.conf.set("spark.sql.files.maxPartitionBytes", "6000")
    yield
    active.conf.unset("spark.sql.files.maxPartitionBytes")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a result by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
