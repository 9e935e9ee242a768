"""The Spark session, and the Java class that it needs beside its own.

It knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

_SOURCE = Path(__file__).with_name("RecordWriter.java")
_CLASS = "dlrm.ingest.RecordWriter"
_LOCAL_MEMORY = "4g"  # the JVM's heap where this process starts it; spark-submit sets its own


@contextlib.contextmanager
def spark_session(master: str | None) -> Iterator[SparkSession]:
    """The session of spark-submit, or a new one that ends with the block.

    Args:
        master: Spark's master; None leaves it to spark-submit, or is all local cores.

    Raises:
        ValueError: one line for what Spark refuses.
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
    # The JVM leaves methods of more bytecode than this uncompiled, and rows of 40 columns fuse into
    # such methods: operators are better left apart then.
    "spark.sql.codegen.hugeMethodLimit": "8000",
    # A number out of range must become null, and the shuffle's 64-bit products must wrap.
    "spark.sql.ansi.enabled": "false",
    # A damaged log is an error.
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}


def _submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _one_line(error: PySparkException) -> str:
    text = str(error.getMessage() or error)
    return "Spark: " + " ".join(text.split())[:500]


def writer_class(session: SparkSession) -> Any:
    """Compiles `RecordWriter.java`, sends it to all workers and loads it here."""
    jvm: Any = session._jvm
    compiler = jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setParentClassLoader(jvm.java.lang.Thread.currentThread().getContextClassLoader())
    compiler.cook(_SOURCE.read_text())
    # A fresh name each time: a session that lives on must not meet an older one.
    descriptor, jar = tempfile.mkstemp(prefix="dlrm_ingest_", suffix=".jar")
    with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for entry in compiler.getBytecodes().entrySet():
            archive.writestr(entry.getKey().replace(".", "/") + ".class", bytes(entry.getValue()))
    session.sparkContext._jsc.addJar(jar)
    urls = session.sparkContext._gateway.new_array(jvm.java.net.URL, 1)  # type: ignore[union-attr]
    urls[0] = jvm.java.io.File(jar).toURI().toURL()
    parent = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    return jvm.java.net.URLClassLoader(urls, parent).loadClass(_CLASS)
