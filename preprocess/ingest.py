"""Raw logs to a result, by the engine that the user names; both write the same bytes."""

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
    """Writes record files (or split folders), their dictionaries, description and checksums.

    Nothing appears under its final name before all rows have been read and written. What a killed
    run finished is not done again.

    Args:
        sources: Raw logs, plain, `.gz` or Parquet, in order.
        output: Folder, made if absent.
        options: Rules, splits, and what to write.
        progress: Makes each pass's display; silent by default.
        engine: "polars", or "spark", which alone takes `hdfs://` and `s3a://`.
        restart: Forget an unfinished run in `output`.
        master: Spark's master; None leaves it to spark-submit, or is all local cores.

    Raises:
        ValueError: For too many bad rows, named by file and line; for rows that cannot be split as
            asked; if an unfinished run in `output` had other options.
        OSError: A file cannot be read or written.
    """
    names = [str(source) for source in sources]
    if engine == "spark":
        # Spark is not needed by others, and slow to import.
        from preprocess.engine_spark.ingest import ingest as ingest_on_spark

        return ingest_on_spark(names, str(output), options, progress, restart, master)
    from preprocess.engine_polars.ingest import ingest

    return ingest(names, str(output), options, progress, restart)
