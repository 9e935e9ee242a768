"""The tests of one call: a rate is measured, Server is warmed up, LoadGen runs, results are shown.

It must not know models: how a batch is scored is passed in.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.accuracy import read_log, report
from dlrm_v3.benchmark.answers import request_answers, times
from dlrm_v3.benchmark.requests import RequestLibrary
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream
from serving.loadgen import summary
from serving.loadgen.batching import BatchLimit
from serving.loadgen.run import run_test
from serving.loadgen.settings import Wanted, fill_target, make_settings
from serving.loadgen.system import ScoringSystem, Work, measure_rate
from serving.loadgen.timeline import Timeline

Score = Callable[[RequestBatch, Timeline], NDArray[np.float32]]

_MODEL = "dlrm-v3"  # its name in LoadGen's mlperf.conf, where its bound of 80 ms is
_MEASURED_SECONDS = 3.0  # enough batches for a rate, also where one takes a tenth of a second
_SLACK = 1.1  # LoadGen's own, for the samples of Offline


class Benchmark:
    """MLPerf's benchmark of a model on the requests of a stream.

    Args:
        flags: The command line's.
        mode: The mode of LoadGen.
        stream: The data.
        max_history: Most events of a history.
        score: Returns the predictions of a batch and records its spans.
    """

    def __init__(
        self,
        flags: argparse.Namespace,
        mode: str,
        stream: RequestStream,
        max_history: int,
        score: Score,
    ) -> None:
        self._flags, self._stream = flags, stream
        self._max_history, self._score = max_history, score
        self._wanted = Wanted(
            scenario=flags.scenario_name,
            mode=mode,
            benchmark=_MODEL,
            conf_files=[flags.user_conf] if flags.user_conf else [],
            target_qps=flags.target_qps,
            target_latency_ms=None,
            min_duration_ms=flags.min_duration_ms,
            min_query_count=None,
        )
        # A query of Server is answered soonest if all cores work on it; without a bound on time, a
        # second batch uses them while the first is at what one core does alone.
        self._runners: int = flags.runners or (1 if flags.scenario_name == "Server" else 2)
        name = f"{flags.scenario_name}_{mode}"
        self._output = flags.output or Path("build", "dlrm_v3", "loadgen", name)

    def run(self) -> int:
        """Runs everything and returns the exit code."""
        flags, wanted = self._flags, self._wanted
        self._make_folder(self._output)
        one_pass = self._library(flags.dataset_percentage)
        settings = make_settings(wanted, one_pass.requests)
        rate = self._measure(one_pass)
        fill_target(settings, wanted, rate, "--target-qps", "--user-conf")
        if wanted.scenario == "Server":
            self._warm_up(settings)
        library = one_pass
        if wanted.mode == "PerformanceOnly":
            library = self._library(flags.dataset_percentage, self._queries(settings, one_pass))
            settings.min_query_count = len(library.sizes)
        print(
            f"{wanted.scenario}, {wanted.mode}: {len(library.sizes):,} queries of "
            f"{library.requests:,} requests; logs in {self._output}",
            flush=True,
        )
        timeline = Timeline()
        work = self._test(settings, library, self._output, timeline)
        return self._show(work, timeline)

    def _library(self, share: float, queries: int | None = None) -> RequestLibrary:
        seed = self._flags.numpy_rand_seed
        return RequestLibrary(self._stream, self._max_history, share, seed, queries)

    def _measure(self, library: RequestLibrary) -> float:
        """Warms the model up; returns the requests a second that it scores."""
        flags = self._flags
        batch = min(flags.batchsize, int(np.count_nonzero(library.groups == library.groups[0])))
        silent = Timeline(recording=False)
        answers = request_answers(lambda batch: self._score(batch, silent), with_labels=False)
        pairs = int(library.sizes[:batch].sum())
        pairs_a_second = measure_rate(
            library, answers, self._runners, pairs, seconds=_MEASURED_SECONDS
        )
        rate = pairs_a_second / float(library.sizes.mean())
        print(f"warm-up: {rate:,.1f} requests/s in batches of {batch}", flush=True)
        return rate

    def _warm_up(self, settings: Any) -> None:
        """Runs a share of the requests of each timestamp as a test of its own."""
        flags = self._flags
        share = flags.dataset_percentage * flags.warmup_ratio
        active = (self._stream.users(t, "inference") for t in self._timestamps())
        if not any(int(len(users) * share) for users in active):
            return
        library = self._library(share)
        own = make_settings(replace(self._wanted, mode="PerformanceOnly"), library.requests)
        own.server_target_qps = settings.server_target_qps
        own.min_query_count = own.max_query_count = library.requests
        print(f"warm-up: {library.requests:,} queries by LoadGen", flush=True)
        self._test(own, library, self._output / "warmup", Timeline(recording=False))

    def _timestamps(self) -> range:
        config = self._stream.config
        return range(config.train_timestamps, config.timestamps)

    def _queries(self, settings: Any, one_pass: RequestLibrary) -> int:
        """The number of queries of a test of performance; fewer than its duration asks for end it.

        Server runs at least one pass over the requests, unless a number is given.
        """
        given = self._flags.num_queries
        offline = self._wanted.scenario == "Offline"
        qps = settings.offline_expected_qps if offline else settings.server_target_qps
        needed = math.ceil(_SLACK * 1e-3 * settings.min_duration_ms * qps)
        if offline:
            return needed
        if given is None:
            return max(needed, one_pass.requests)
        if given < needed:
            print(
                f"--num-queries={given}: may end before LoadGen's shortest run of "
                f"{1e-3 * settings.min_duration_ms:g} s, which is INVALID then; {needed} do not",
                flush=True,
            )
            settings.max_query_count = given
        return int(given)

    def _test(
        self, settings: Any, library: RequestLibrary, output: Path, timeline: Timeline
    ) -> Work:
        """Runs LoadGen."""
        flags, wanted = self._flags, self._wanted
        self._make_folder(output)
        summary.remove(output)
        settings.performance_sample_count_override = len(library.sizes)
        answers = request_answers(
            lambda batch: self._score(batch, timeline), with_labels=wanted.mode == "AccuracyOnly"
        )
        offline = wanted.scenario == "Offline"
        # A bound on time would keep batches small for good: a small one takes more time a request.
        limit = BatchLimit(flags.batchsize * int(library.sizes.max()), bound=None)
        return run_test(
            settings,
            library,
            lambda complete, failed: ScoringSystem(
                library,
                answers,
                complete,
                failed,
                limit,
                workers=self._runners,
                readers=flags.data_producer_threads,
                # All queries of Offline wait from the beginning, so no batch is smaller for being
                # read early; in Server one is.
                ahead=flags.data_producer_threads if offline else self._runners,
                groups=library.groups,
                timeline=timeline,
            ),
            output,
            order=library.order(),
        )

    @staticmethod
    def _make_folder(output: Path) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--output: expected a folder that can be written, found {output}: "
                f"{error.strerror}; name another"
            ) from None

    def _show(self, work: Work, timeline: Timeline) -> int:
        """Prints what came of the test and returns the exit code."""
        print("\n".join(summary.report(self._output)))
        print("\n".join(times(timeline)))
        print(
            f"{work.samples / max(work.seconds, 1e-9):,.2f} qps: {work.samples:,} requests in "
            f"{work.batches:,} batches of {work.samples / max(work.batches, 1):.1f}, "
            f"{work.seconds:.1f} s"
        )
        if self._flags.output_trace:
            timeline.write_trace(self._output / "trace.json")
            print(f"trace: {self._output / 'trace.json'}, for ui.perfetto.dev or chrome://tracing")
        if self._wanted.mode == "AccuracyOnly":
            lines, _ = report(read_log(self._output / summary.ACCURACY), {})
            print("\n".join(lines))
            return 0
        return 0 if summary.result(self._output) else 1
