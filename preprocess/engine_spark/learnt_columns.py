"""What a run over columns of any kind learns in Spark, staged in the work folder.

This module must not know about ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from preprocess.engine_spark.column_lines import column_lines
from preprocess.engine_spark.learn import learn_dense, stage_texts
from preprocess.engine_spark.log_lines import file_lines
from preprocess.engine_spark.parse import LineConversion, known_texts
from preprocess.engine_spark.storage import HadoopFiles
from preprocess.learned import STATISTICS, parse_statistics, statistics_text
from preprocess.options import Options
from preprocess.outputs import WORK


class LearntColumns:
    """The texts and statistics of a log's columns.

    Args:
        session: Spark.
        files: The file systems.
        output: The output folder.
        options: The options of the run, whose schema describes columns.
    """

    def __init__(
        self, session: SparkSession, files: HadoopFiles, output: str, options: Options
    ) -> None:
        assert options.schema.columns
        self._session = session
        self._files = files
        self._output = output
        self._options = options
        self._log = options.schema.columns
        work = files.child(files.path(output), WORK)
        self._staged = str(files.child(work, "texts").toString())

    def learn(self, sources: Sequence[str]) -> None:
        """Reads all logs once and stages what their columns need."""
        options, log = self._options, self._log
        lines = [file_lines(self._session, source, options.schema) for source in sources]
        if log.text_tables:
            stage_texts(self._session, lines, self._staged, options)
        if options.dictionary:
            text = self._files.store(options.dictionary).read(STATISTICS)
            dense = parse_statistics(log, text, options.dictionary_flag)
        else:
            names = [source.rpartition("/")[2] for source in sources]
            dense = learn_dense(lines, names, options)
        store = self._files.store(self._output)
        store.write(f"{WORK}/{STATISTICS}", statistics_text(log, dense))

    def texts(self) -> dict[int, DataFrame]:
        """Returns the texts of each table whose values are texts, (value, text)."""
        if not self._log.text_tables:
            return {}
        staged = self._session.read.parquet(self._staged)
        return {
            table: staged.filter(sf.col("feature") == table).select("value", "text")
            for table in self._log.text_tables
        }

    def conversion(self) -> LineConversion:
        """Returns what makes lines of numbers of the lines of the log."""
        text = self._files.store(self._output).read(f"{WORK}/{STATISTICS}")
        dense, texts = parse_statistics(self._log, text, self._output), self.texts()
        return LineConversion(
            lambda lines: column_lines(lines, self._log, self._options.split, dense, texts),
            known_texts(self._session, texts, self._options),
        )
