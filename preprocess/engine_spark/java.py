"""Compiles the Java classes of this engine once for each Spark session, and applies them.

This module must not know what the classes do.
"""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

_SOURCES = Path(__file__).with_name("java")
_PACKAGE = "dlrm.ingest"


class JavaClasses:
    """The Java classes of a session, sent to all workers and loaded here; see `java_classes`."""

    def __init__(self, session: SparkSession) -> None:
        self._session = session
        self._jvm: Any = session._jvm
        self._gateway: Any = session.sparkContext._gateway
        self._loader = self._load(self._compiled())

    def new(self, name: str, *arguments: Any) -> Any:
        """Creates an object of a class with its only constructor."""
        values = self._array(self._jvm.java.lang.Object, arguments)
        made = self._loader.loadClass(f"{_PACKAGE}.{name}")
        return made.getConstructors()[0].newInstance(values)

    def rows(self, frame: DataFrame, function: Any, schema: str) -> DataFrame:
        """Applies a Java function to each partition of a data frame.

        Args:
            frame: The input.
            function: A Java `MapPartitionsFunction`.
            schema: The schema of its output, in SQL's notation.
        """
        types = self._jvm.org.apache.spark.sql.types.StructType.fromDDL(schema)
        encoder = self._jvm.org.apache.spark.sql.Encoders.row(types)
        return DataFrame(frame._jdf.mapPartitions(function, encoder).toDF(), self._session)

    def _compiled(self) -> dict[str, bytes]:
        """Compiles all sources with the compiler that comes with Spark; returns classes by name."""
        util = self._jvm.org.codehaus.commons.compiler.util.resource
        janino = self._jvm.org.codehaus.janino
        context = self._jvm.java.lang.Thread.currentThread().getContextClassLoader()
        classes = self._jvm.java.util.HashMap()
        compiler = janino.Compiler()
        compiler.setIClassLoader(janino.ClassLoaderIClassLoader(context))
        compiler.setClassFileCreator(util.MapResourceCreator(classes))
        sources = [self._jvm.java.io.File(str(path)) for path in sorted(_SOURCES.glob("*.java"))]
        compiler.compile(self._array(self._jvm.java.io.File, sources))
        return {entry.getKey(): bytes(entry.getValue()) for entry in classes.entrySet()}

    def _load(self, classes: dict[str, bytes]) -> Any:
        """Writes the classes into a jar for the workers and returns a class loader for it."""
        # A new name each time, so that a long-lived session does not find an older jar.
        descriptor, jar = tempfile.mkstemp(prefix="dlrm_ingest_", suffix=".jar")
        with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, content in classes.items():
                archive.writestr(name, content)
        self._session.sparkContext._jsc.addJar(jar)
        urls = self._array(self._jvm.java.net.URL, [self._jvm.java.io.File(jar).toURI().toURL()])
        parent = self._jvm.java.lang.Thread.currentThread().getContextClassLoader()
        return self._jvm.java.net.URLClassLoader(urls, parent)

    def _array(self, kind: Any, values: Any) -> Any:
        array = self._gateway.new_array(kind, len(values))
        for index, value in enumerate(values):
            array[index] = value
        return array


@functools.lru_cache(maxsize=1)
def java_classes(session: SparkSession) -> JavaClasses:
    """Returns the classes of a session."""
    return JavaClasses(session)
