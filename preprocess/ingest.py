"""The entry point of preprocessing: runs the chosen engine; both engines write the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preprocess.options import Options
from preprocess.progress import PassProgress, Progress
from preprocess.summary import Summary

ENGINES = ("polars", "spark")


def preprocess(
    sources: Sequence[str | Path],
    output: str | Path,
    options: Options,
    progress: Progress = PassProgress,
    *,
    engine: str = "polars",
    restart: bool = False,
    master: str | None = None,
) -> Summary:
    """Writes record files or split folders with their dictionaries, description and checksums.

    No file appears under its final name before all rows have been read and written. A run that was
    killed is continued; what it finished is not done again.

    Args:
        sources: The raw logs in order: plain text, `.gz` or Parquet.
        output: The output folder; it is created if absent.
        options: The rules, the split and the kind of output.
        progress: Makes the progress display of each pass; silent by default.
        engine: "polars" or "spark"; only "spark" reads `hdfs://` and `s3a://`.
        restart: Whether to discard an unfinished run in `output`.
        master: Spark's master; None takes that of spark-submit, or all local cores.

    Raises:
        ValueError: There are too many bad rows (the message names file and line), the rows cannot
            be split as asked, or an unfinished run in `output` had other options.
        OSError: A file cannot be read or written.
    """
    names = [str(source) for source in sources]
    if engine == "spark":
        # Importing Spark takes seconds, and only this engine needs it.
        from preprocess.engine_spark.ingest import ingest as ingest_on_spark

        return ingest_on_spark(names, str(output), options, progress, restart, master)
    from preprocess.engine_polars.ingest import ingest

    return ingest(names, str(output), options, progress, restart)
