"""Reads the lines of a log with Spark, in the order of the file.

This module must not know what a line holds, beyond a header.
"""

from __future__ import annotations

from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from preprocess.columns import UNIT_SEPARATOR, LogColumns, list_fault
from preprocess.schema import Schema


def file_lines(session: SparkSession, source: str, full: Schema) -> DataFrame:
    """Reads the lines of a file as bytes, without LF.

    Raises:
        ValueError: The partitions of the file are not in order, or its header is wrong.
    """
    schema = full.columns or full
    if schema.format == "parquet":
        frame = session.read.parquet(source)
        absent = [name for name in schema.names if name not in frame.columns]
        if absent:
            raise ValueError(
                f"{source}: expected columns {', '.join(absent)}, found none of these names;"
                " correct the schema's columns"
            )
        lists = schema.list_columns if isinstance(schema, LogColumns) else ()
        for name in schema.names:
            _check_type(source, name, frame.schema[name].dataType, name in lists)
        texts = [_parquet_text(name, name in lists) for name in schema.names]
        value = sf.concat_ws("\t", *texts)
    else:
        frame = session.read.option("lineSep", "\n").text(source)
        value = sf.col("value")
    lines = frame.select(value.cast("binary").alias("value"), "_metadata.file_block_start")
    _check_order(lines, source)
    lines = lines.select("value")
    if schema.header:
        _check_header(lines, source, schema)
    return lines


def _check_type(source: str, name: str, found: DataType, is_list: bool) -> None:
    """Refuses a column of a Parquet file that cannot become text."""
    inner = found.elementType if isinstance(found, ArrayType) else None
    nested = isinstance(inner, (ArrayType, MapType, StructType))
    fault = list_fault(inner is not None, is_list, nested)
    if fault:
        raise ValueError(f"{source}: column {name}: {fault}")


def _parquet_text(name: str, is_list: bool) -> Column:
    """Returns a column of a Parquet file as text, in which nothing ends a field or a line."""
    column = sf.col(f"`{name}`")
    if is_list:
        items = sf.transform(
            column.cast("array<string>"),
            lambda item: sf.regexp_replace(item, rf"[\t\r\n{UNIT_SEPARATOR}]", " "),
        )
        text = sf.array_join(items, UNIT_SEPARATOR, "")
    else:
        text = sf.regexp_replace(column.cast("string"), r"[\t\r\n]", " ")
    return sf.coalesce(text, sf.lit(""))


def _check_header(lines: DataFrame, source: str, schema: Schema | LogColumns) -> None:
    first = lines.first()
    fault = first and schema.header_fault(bytes(first["value"]).removesuffix(b"\r"))
    if fault:
        raise ValueError(f"{source}, line 1: {fault}; correct the schema's columns")


def _check_order(lines: DataFrame, source: str) -> None:
    """Checks that the partitions of a file follow each other in it, as row numbers assume.

    The offsets are taken from Spark's plan, so that no text is read.
    """
    jvm_partitions: Any = lines._jdf.queryExecution().toRdd().partitions()
    starts = []
    for partition in jvm_partitions:
        if not hasattr(partition, "files"):
            return
        for file in partition.files():
            starts.append(int(file.start()))
    if starts != sorted(starts):
        raise ValueError(
            f"{source}: expected Spark to read the file in order, found another order; set"
            " --engine=polars"
        )
