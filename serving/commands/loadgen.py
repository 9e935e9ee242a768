"""`python3 -m serving loadgen`: MLPerf's load generator on an artifact or through a server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Callable

from serving.commands.accuracy import add_reference, check_complete
from serving.loadgen.settings import MODES, SCENARIOS

# They may not differ in a submission.
_RULED = (
    *("target_latency_ms", "min_duration_ms", "min_query_count", "mlperf_conf", "max_samples"),
    *("samples_to_aggregate_fix", "samples_to_aggregate_min", "samples_to_aggregate_max"),
)
_REQUESTS = 8  # of a server at a time, which makes batches of them


def add_parser(commands: Any) -> None:
    """Adds the command."""
    text = (
        "Run MLPerf's load generator, show its summary, and judge the predictions of an "
        "AccuracyOnly run. Exit code 1 if the result is INVALID or 99 % of the reference's AUC "
        "is not held."
    )
    parser = commands.add_parser("loadgen", help="Run LoadGen.", description=text)
    parser.set_defaults(run=_run)
    for name, choices in (("scenario", SCENARIOS), ("mode", MODES)):
        parser.add_argument(f"--{name}", choices=choices, default=choices[0], help="of LoadGen")
    system = parser.add_argument_group("what is tested")
    system.add_argument(
        "--artifact", type=Path, metavar="FOLDER", help="the artifact to score with"
    )
    system.add_argument("--hot_share", type=float, default=1.0, metavar="X", help="of its scorer")
    system.add_argument("--url", metavar="HOST:PORT", help="gRPC address of a server, instead")
    system.add_argument("--model", default="dlrm", help="model of the server (default: dlrm)")
    system.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="batches at a time (default: Server 1, Offline one for each core, --url 8)",
    )
    system.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="threads for a batch (default: Server one for each core, Offline 1)",
    )
    system.add_argument(
        "--max_batch_pairs",
        type=_count,
        default=2048,
        metavar="N",
        help="most pairs of a batch; one sample may have more (default: 2048)",
    )
    samples = parser.add_argument_group("samples: user-item pairs of --data, in order")
    samples.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="split folder")
    samples.add_argument("--second_half", action="store_true", help="take the second half alone")
    samples.add_argument("--max_samples", type=_count, metavar="N", help="take the first N samples")
    samples.add_argument("--seed", type=int, default=123, help="of the partition (default: 123)")
    samples.add_argument(
        "--quantiles", type=Path, metavar="FILE", help="pairs a sample, each drawn equally often"
    )
    samples.add_argument(
        "--samples_to_aggregate_fix", type=_count, metavar="N", help="the same size for all"
    )
    for end in ("min", "max"):
        samples.add_argument(
            f"--samples_to_aggregate_{end}", type=_count, metavar="N", help="sizes drawn evenly"
        )
    samples.add_argument(
        "--trace", type=Path, metavar="FILE", help="partition to write (default: in --output)"
    )
    settings = parser.add_argument_group("settings, stronger than those of conf files")
    settings.add_argument(
        "--benchmark", default="dlrm", help="model in conf files: dlrm or dlrm-v2 (default: dlrm)"
    )
    settings.add_argument(
        "--mlperf_conf", type=Path, metavar="FILE", help="read after LoadGen's own mlperf.conf"
    )
    settings.add_argument("--user_conf", type=Path, metavar="FILE", help="read after mlperf.conf")
    settings.add_argument("--audit_conf", type=Path, metavar="FILE", help="of a compliance test")
    settings.add_argument(
        "--target_qps", type=_positive, metavar="X", help="samples a second (Offline: measured)"
    )
    settings.add_argument("--target_latency_ms", type=_positive, metavar="X", help="of Server")
    settings.add_argument("--min_duration_ms", type=_count, metavar="N", help="shortest run")
    settings.add_argument("--min_query_count", type=_count, metavar="N", help="fewest queries")
    settings.add_argument(
        "--compliant", action="store_true", help="refuse flags that a submission may not set"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for LoadGen's logs (default: build/loadgen/SCENARIO_MODE)",
    )
    parser.add_argument(
        "--predictions_only",
        action="store_true",
        help="leave labels out of the answers; the trace leads to them",
    )
    add_reference(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, found {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return number


def _check(flags: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    if bool(flags.artifact) == bool(flags.url):
        raise ValueError("expected either --artifact=FOLDER or --url=HOST:PORT")
    rules = [flags.samples_to_aggregate_fix, flags.samples_to_aggregate_min, flags.quantiles]
    if sum(rule is not None for rule in rules) > 1:
        raise ValueError(
            "expected one of --quantiles, --samples_to_aggregate_fix and "
            "--samples_to_aggregate_min with --samples_to_aggregate_max, found several"
        )
    least, most = flags.samples_to_aggregate_min, flags.samples_to_aggregate_max
    if (least is None) != (most is None) or (least or 0) > (most or 0):
        raise ValueError(
            "expected --samples_to_aggregate_min=N and --samples_to_aggregate_max=M with N at most "
            f"M, found {least} and {most}"
        )
    if flags.audit_conf and not flags.audit_conf.is_file():
        raise ValueError(f"--audit_conf: expected a file, found none at {flags.audit_conf}")
    ruled = [f"--{name}" for name in _RULED if getattr(flags, name) is not None]
    if flags.compliant and ruled:
        raise ValueError(
            f"--compliant: expected none of the flags that a submission may not set, found "
            f"{', '.join(ruled)}; use --user_conf"
        )


def _run(flags: argparse.Namespace) -> int:
    _check(flags)
    import numpy as np

    from dlrm.data import open_split
    from serving.id_columns import IdColumns
    from serving.loadgen import partition, summary
    from serving.loadgen.library import SampleLibrary
    from serving.loadgen.settings import Wanted, make_settings

    source = open_split(flags.data, per_category=False)
    first = (source.num_samples + 1) // 2 if flags.second_half else 0
    if first >= source.num_samples:
        raise ValueError(f"{flags.data}: expected samples, found {source.num_samples}")
    sizes = partition.default_sizes()
    if flags.quantiles:
        sizes = partition.read_sizes(flags.quantiles)
    elif flags.samples_to_aggregate_fix:
        sizes = np.array([flags.samples_to_aggregate_fix])
    elif flags.samples_to_aggregate_min:
        sizes = np.arange(flags.samples_to_aggregate_min, flags.samples_to_aggregate_max + 1)
    offsets = partition.partition(first, source.num_samples, sizes, flags.seed)
    if flags.max_samples:
        offsets = offsets[: flags.max_samples + 1]
    library = SampleLibrary(
        source, offsets, IdColumns.of_data(len(source.vocab_sizes), source.bag_layout)
    )
    wanted = Wanted(
        scenario=flags.scenario,
        mode=flags.mode,
        benchmark=flags.benchmark,
        conf_files=[path for path in (flags.mlperf_conf, flags.user_conf) if path],
        target_qps=flags.target_qps,
        target_latency_ms=flags.target_latency_ms,
        min_duration_ms=flags.min_duration_ms,
        min_query_count=flags.min_query_count,
    )
    settings = make_settings(wanted, len(library.sizes))
    output = flags.output or Path("build", "loadgen", f"{flags.scenario}_{flags.mode}")
    output.mkdir(parents=True, exist_ok=True)
    summary.remove(output)
    partition.write_trace(flags.trace or output / "trace.txt", offsets)
    print(
        f"{len(library.sizes):,} samples of {library.sizes.min()} to {library.sizes.max()} pairs, "
        f"{library.sizes.mean():.1f} on average; logs in {output}",
        flush=True,
    )
    if flags.url:
        from serving.loadgen.remote_scorer import RemoteScorer

        with RemoteScorer(flags.url, flags.model) as remote:
            qps = _warm_up(flags, library, remote.score)
            return _test(flags, wanted, settings, library, offsets, output, remote.score, qps)

    from serving.checkpoint_samples import check_fit
    from serving.scorer import Scorer

    # A query of Server is answered soonest if all cores work on it; without a bound on time, cores
    # that need not wait for each other score more.
    threads = flags.threads or (1 if flags.scenario == "Offline" else None)
    with Scorer.open(flags.artifact, hot_share=flags.hot_share, threads=threads) as scorer:
        check_fit(flags.data, source, scorer.artifact.model)
        qps = _warm_up(flags, library, scorer.score)
        before = scorer.lookups()
        code = _test(flags, wanted, settings, library, offsets, output, scorer.score, qps)
        if flags.hot_share < 1:
            hot, cold = (now - then for then, now in zip(before, scorer.lookups()))
            print(f"hot rows: {hot / max(hot + cold, 1):.2%} of {hot + cold:,} lookups")
        return code


def _test(
    flags: argparse.Namespace,
    wanted: Any,
    settings: Any,
    library: Any,
    offsets: Any,
    output: Path,
    score: Callable[..., Any],
    qps: float,
) -> int:
    """Runs the test, prints what came of it and returns the exit code."""
    from serving.loadgen import summary
    from serving.loadgen.batching import BatchLimit
    from serving.loadgen.library import pair_answers
    from serving.loadgen.run import run_test
    from serving.loadgen.settings import fill_target
    from serving.loadgen.system import ScoringSystem

    fill_target(settings, wanted, qps, "--target_qps", "--user_conf")
    bound = settings.server_target_latency_ns * 1e-9 if wanted.scenario == "Server" else None
    answer = pair_answers(score, with_labels=not flags.predictions_only)
    limit = BatchLimit(flags.max_batch_pairs, bound)
    work = run_test(
        settings,
        library,
        lambda complete, failed: ScoringSystem(
            library, answer, complete, failed, limit, workers=_workers(flags)
        ),
        output,
        audit=flags.audit_conf,
    )
    print("\n".join(summary.report(output)))
    print(
        f"scored {work.samples:,} samples, {work.pairs:,} pairs in {work.batches:,} batches of "
        f"{work.pairs / max(work.batches, 1):,.0f}: "
        f"{work.pairs / max(work.seconds, 1e-9):,.0f} pairs/s"
    )
    if wanted.mode == "AccuracyOnly":
        return _judge(flags, library, offsets, output)
    return 0 if summary.result(output) else 1


def _warm_up(flags: argparse.Namespace, library: Any, score: Callable[..., Any]) -> float:
    """Warms the scorer up; returns the samples a second that it scores."""
    from serving.loadgen.library import pair_answers
    from serving.loadgen.system import measure_rate

    answer = pair_answers(score, with_labels=False)
    rate = measure_rate(library, answer, _workers(flags), flags.max_batch_pairs)
    qps = rate / float(library.sizes.mean())
    print(f"warm-up: {rate:,.0f} pairs/s, {qps:,.1f} samples/s", flush=True)
    return qps


def _workers(flags: argparse.Namespace) -> int:
    """How many batches are under way at a time."""
    if flags.workers or flags.url:
        return flags.workers or _REQUESTS
    return len(os.sched_getaffinity(0)) if flags.scenario == "Offline" else 1


def _judge(flags: argparse.Namespace, library: Any, offsets: Any, output: Path) -> int:
    """Reads the accuracy log of the test that ended; returns the exit code."""
    from dlrm.data import open_split
    from serving.loadgen.accuracy_log import read_accuracy_log, report
    from serving.loadgen.ground_truth import labels_by_sample, reference_auc
    from serving.loadgen.summary import ACCURACY

    source = open_split(flags.data, per_category=False)
    labels_of = labels_by_sample(source, offsets) if flags.predictions_only else None
    scored = read_accuracy_log(output / ACCURACY, labels_of)
    check_complete(output / ACCURACY, scored.samples, len(library.sizes))
    reference = flags.reference_auc
    if flags.reference:
        reference = reference_auc(flags.reference, flags.data, int(offsets[0]), int(offsets[-1]))
    lines, held = report(scored, reference)
    print("\n".join(lines))
    return 0 if held else 1
