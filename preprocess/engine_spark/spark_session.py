"""Opens the Spark session; this module must not know what it is used for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

_LOCAL_MEMORY = "4g"  # heap of a JVM that this process starts; spark-submit sets its own


@contextlib.contextmanager
def spark_session(master: str | None) -> Iterator[SparkSession]:
    """Yields the session of spark-submit, or a new one that is stopped after the block.

    Args:
        master: Spark's master; None takes that of spark-submit, or all local cores.

    Raises:
        ValueError: Spark reports an error; the message is one line.
    """
    active = SparkSession.getActiveSession()
    builder = SparkSession.builder.appName("dlrm ingest")
    if master or not _submitted():
        builder = builder.master(master or "local[*]")
    if not _submitted():
        memory = os.environ.get("SPARK_DRIVER_MEMORY", _LOCAL_MEMORY)
        builder = (
            builder.config("spark.driver.memory", memory)
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.log.level", "ERROR")
        )
    session = builder.getOrCreate()
    before = {key: session.conf.get(key) for key in _SETTINGS}
    for key, value in _SETTINGS.items():
        session.conf.set(key, value)
    try:
        yield session
    except PySparkException as error:
        raise ValueError(_one_line(error)) from error
    finally:
        if active is None:
            session.stop()
        else:
            for key, setting in before.items():
                session.conf.set(key, setting or "")


_SETTINGS = {
    # A damaged or missing log must be an error.
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}


def _submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _one_line(error: PySparkException) -> str:
    text = str(error.getMessage() or error)
    return "Spark: " + " ".join(text.split())[:500]
