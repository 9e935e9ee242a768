"""What a user, a script and TensorBoard read of a run, against numbers worked out by hand."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrm.metrics import Evaluation
from dlrm.reporting import Reporter, results_table
from dlrm.reporting.event_log import EventLog
from dlrm.reporting.plot import DPI, HEIGHT_INCHES, WIDTH_INCHES

ROOT = Path(__file__).resolve().parents[3]
SETTINGS: dict[str, object] = {
    "global_batch_size": 1000,
    "auc_target": 0.75,
    "eval_interval": 100,
    "eval_in_last": False,
    "xla": True,
    "custom_interact": False,
    "amp": True,
    "compress": False,
    "epochs": 1,
    "early_stop": -1,
    "lr": 24.0,
    "bottom_mlp": (512, 256, 128),
    "data_dir": None,
}
ITERATION = re.compile(
    r"Iteration:(\d+)\tloss:(\d+\.\d{6}|nan)\ttime:(\d+\.\d\d)s\tthroughput:(\d+\.\d+|nan)M\Z"
)


def evaluation(step: int, auc: float, **figures: Any) -> Evaluation:
    others = {"log_loss": 0.5, "normalised_entropy": 0.9, "samples": 5000, "seconds": 1.5}
    return Evaluation(step, auc, **{**others, **figures})


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(
    run_dir: Path | None, stream: Any, clock: Clock, rank: int = 0, **settings: Any
) -> Reporter:
    return Reporter(
        None if run_dir is None else str(run_dir),
        {**SETTINGS, **settings},
        rank=rank,
        size=2,
        global_batch=1000,
        total_steps=300,
        stream=stream,
        clock=clock,
    )


def tell(reporter: Reporter, clock: Clock, last_auc: float = 0.76) -> None:
    """A run of 300 steps: 4 s, 2 s and 3 s of training, two evaluations of 1.5 s."""
    reporter.start()
    clock.now += 4.0
    reporter.step(100, 0.69, 12.0)
    clock.now += 1.5
    reporter.evaluation(evaluation(100, 0.70))
    clock.now += 2.0
    reporter.step(200, math.nan, 24.0)
    clock.now += 3.0
    reporter.step(300, 0.51, 24.0)
    clock.now += 1.5
    reporter.evaluation(evaluation(300, last_auc))
    reporter.finish(
        "AUC target reached",
        training_seconds=9.0,
        evaluation_seconds=3.0,
        total_seconds=12.6,
        steps=300,
    )


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder and the console lines of one finished run."""
    run_dir = tmp_path_factory.mktemp("run") / "new" / "folder"
    stream, clock = io.StringIO(), Clock()
    tell(make(run_dir, stream, clock), clock)
    return run_dir, stream.getvalue().splitlines()


def test_iteration_lines_exclude_evaluation_time(told: tuple[Path, list[str]]) -> None:
    matches = [ITERATION.match(line) for line in told[1] if line.startswith("Iteration")]
    # 100,000 samples in 4 s, in 2 s (not in the 3.5 s with the evaluation), in 3 s.
    assert [match.groups() for match in matches if match] == [
        ("100", "0.690000", "4.00", "0.0250"),
        ("200", "nan", "2.00", "0.0500"),
        ("300", "0.510000", "3.00", "0.0333"),
    ]


def test_evaluation_lines(told: tuple[Path, list[str]]) -> None:
    lines = [line for line in told[1] if line.startswith("Evaluate")]
    tail = " log loss: 0.500000, NE: 0.900000"
    assert lines == [
        f"Evaluate in 100th iteration, test time: 1.50s, AUC: 0.700000.{tail}",
        f"Evaluate in the end, test time: 1.50s, AUC: 0.760000.{tail}",
    ]


def test_closing_lines(told: tuple[Path, list[str]]) -> None:
    lines = told[1]
    # Without the first interval: 200,000 samples in 5 s = 0.04 M/s, 1000 samples in 25 ms.
    first = lines.index("total time: 12.60s, in 300 iterations")
    assert lines[first + 1 : first + 3] == [
        "only training time: 9.00s, average: 30.00ms/iter, "
        "average throughput: 0.0400M(25.00ms/iter)",
        "only evaluate time: 3.00s",
    ]


def test_table(told: tuple[Path, list[str]]) -> None:
    run_dir, lines = told
    row = (
        "| 1000 | AUC > 0.75 | every 100 steps | yes | no | yes | no "
        "| 0.15 | 0.05 | 0.21 | 30.00 | 0.0400M |"
    )
    header = (
        "| batch size | exit criteria | frequent of evaluation | xla | custom interact | amp "
        "| compress | training time (minutes) | evaluating time (minutes) | total time (minutes) "
        "| average time of iteration (ms) | throughput(samples/second) |"
    )
    at = lines.index(row)
    assert lines[at - 2] == header
    assert lines[at - 1] == "|" + " :---: |" * 12
    markdown = (run_dir / "result.md").read_text().splitlines()
    assert markdown[:3] == lines[at - 2 : at + 1]
    assert "- auc: 0.76" in markdown


def test_published_row_reads_as_published() -> None:
    row = {
        "batch_size": 65536,
        "exit_criterion": "1 epoch",
        "evaluation_frequency": "at end",
        "xla": True,
        "custom_interact": True,
        "amp": False,
        "compress": True,
        "training_minutes": 5.93,
        "evaluation_minutes": 0.09,
        "total_minutes": 6.02,
        "ms_per_iteration": 5.55,
        "samples_per_second": 12.08e6,
    }
    assert results_table([row]).splitlines()[2] == (
        "| 65536 | 1 epoch | at end | yes | yes | no | yes | 5.93 | 0.09 | 6.02 | 5.55 | 12.08M |"
    )


@pytest.mark.parametrize(
    ("settings", "auc", "expected"),
    [
        ({}, 0.75, "1 epoch"),  # the target must be passed, not met
        ({}, math.nan, "1 epoch"),
        ({"epochs": 10}, 0.7, "10 epochs"),
        ({"auc_target": None}, 0.9, "1 epoch"),
        ({"eval_in_last": True}, 0.9, "1 epoch"),  # an evaluation at the end stops nothing
        ({"early_stop": 300}, 0.7, "300 steps"),
        ({"early_stop": 301}, 0.7, "1 epoch"),
        ({"early_stop": 300}, 0.8, "AUC > 0.75"),
    ],
)
def test_exit_criterion_is_what_ended_the_run(
    settings: dict[str, Any], auc: float, expected: str
) -> None:
    stream, clock = io.StringIO(), Clock()
    tell(make(None, stream, clock, **settings), clock, auc)
    row = stream.getvalue().splitlines()[-1].split(" | ")
    assert row[1] == expected
    assert row[2] == ("at end" if settings.get("eval_in_last") else "every 100 steps")


def test_events_are_strict_json(told: tuple[Path, list[str]]) -> None:
    events = read_events(told[0])
    kinds = [(event["event"], event["step"]) for event in events]
    assert kinds == [
        ("start", 0), ("step", 100), ("evaluation", 100), ("step", 200), ("step", 300),
        ("evaluation", 300), ("result", 300),
    ]  # fmt: skip
    assert all(isinstance(event["time"], float) for event in events)

    start, first, evaluation, second = events[:4]
    assert start["settings"] == {**SETTINGS, "bottom_mlp": [512, 256, 128]}
    assert start["ranks"] == 2
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert start["hardware"]["cores"] == os.cpu_count()
    assert (first["loss"], first["learning_rate"]) == (0.69, 12.0)
    assert (first["seconds"], first["samples_per_second"]) == (4.0, 25_000.0)
    assert second["loss"] is None
    assert (evaluation["auc"], evaluation["samples"], evaluation["seconds"]) == (0.7, 5000, 1.5)


def test_result_event_has_the_table(told: tuple[Path, list[str]]) -> None:
    result = read_events(told[0])[-1]
    del result["time"]
    assert result == {
        "event": "result",
        "step": 300,
        "batch_size": 1000,
        "exit_criterion": "AUC > 0.75",
        "evaluation_frequency": "every 100 steps",
        "xla": True,
        "custom_interact": False,
        "amp": True,
        "compress": False,
        "training_minutes": pytest.approx(0.15),
        "evaluation_minutes": pytest.approx(0.05),
        "total_minutes": pytest.approx(0.21),
        "ms_per_iteration": pytest.approx(30.0),
        "samples_per_second": pytest.approx(40_000.0),
        "samples_per_second_with_start": pytest.approx(300_000 / 9),
        "reason": "AUC target reached",
        "steps": 300,
        "ranks": 2,
        "auc": 0.76,
        "log_loss": 0.5,
        "normalised_entropy": 0.9,
    }


def test_tensorboard_reads_scalars_and_hparams(told: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    accumulator = EventAccumulator(str(told[0] / "tensorboard"))
    accumulator.Reload()

    def points(tag: str) -> Any:
        return [(event.step, event.tensor_proto.float_val[0]) for event in accumulator.Tensors(tag)]

    assert points("auc") == [(100, pytest.approx(0.70)), (300, pytest.approx(0.76))]
    assert points("loss")[0] == (100, pytest.approx(0.69))
    assert math.isnan(points("loss")[1][1])
    assert points("learning_rate") == [(100, 12.0), (200, 24.0), (300, 24.0)]
    assert points("samples_per_second")[1] == (200, 50_000.0)
    assert points("log_loss") == [(100, 0.5), (300, 0.5)]
    assert points("normalised_entropy")[1] == (300, pytest.approx(0.9))

    def hparams(tag: str) -> Any:
        content = accumulator.SummaryMetadata(tag).plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(content)

    session = hparams(metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    assert set(session) == set(SETTINGS)
    assert session["xla"].bool_value is True
    assert session["lr"].number_value == 24.0
    assert session["bottom_mlp"].string_value == "512-256-128"
    metrics = hparams(metadata.EXPERIMENT_TAG).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["auc"]
    assert hparams(metadata.SESSION_END_INFO_TAG).session_end_info.status == 1


def test_picture_is_a_png_with_three_panels(told: tuple[Path, list[str]]) -> None:
    from matplotlib.image import imread

    data = (told[0] / "run.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (int(WIDTH_INCHES * DPI), int(HEIGHT_INCHES * DPI))
    pixels = imread(told[0] / "run.png")[:, :, :3]
    for colour in ((0x24, 0x63, 0xA8), (0x1D, 0x81, 0x56), (0xC2, 0x57, 0x1A)):
        same = (abs(pixels * 255 - colour) < 3).all(axis=2)
        assert same.sum() > 30, f"nothing drawn in {colour}"
    assert sorted(path.name for path in told[0].iterdir()) == [
        "events.jsonl", "result.md", "run.png", "tensorboard",
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [0, 1, 500])
def test_picture_of_any_length(tmp_path: Path, steps: int) -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = make(tmp_path, stream, clock, auc_target=None)
    reporter.start()
    for step in range(1, steps + 1):
        reporter.step(step, 0.5, 1.0)  # no time passes: no throughput either
    reporter.finish(
        "", training_seconds=0.0, evaluation_seconds=0.0, total_seconds=0.0, steps=steps
    )
    assert (tmp_path / "run.png").stat().st_size > 5000
    assert "warning" not in stream.getvalue()


def test_large_throughput_has_two_digits() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = make(None, stream, clock)
    reporter.start(first_step=100)
    for step, seconds in ((200, 0.008), (201, 0.01), (202, 0.0100001)):
        clock.now += seconds
        reporter.step(step, 0.5, 1.0)
    # 12.5 M/s (only steps of this run count), then just at 0.1 M/s and just below.
    found = re.findall(r"throughput:(\S+)", stream.getvalue())
    assert found == ["12.50M", "0.10M", "0.1000M"]


def test_other_ranks_say_and_write_nothing(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = make(tmp_path / "run", stream, clock, rank=1)
    tell(reporter, clock)
    reporter.fail("lost")
    assert stream.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_console_alone_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[Path, list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    # What makes rich take anything for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, clock = io.StringIO(), Clock()
    tell(make(None, stream, clock), clock)
    assert list(tmp_path.iterdir()) == []
    lines = stream.getvalue().splitlines()
    assert lines == told[1][: len(lines)]
    assert "\x1b" not in stream.getvalue()


def test_checkpoints_are_no_training_time(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = make(tmp_path, stream, clock)
    reporter.start()
    clock.now += 4.0
    reporter.step(100, 0.69, 12.0)
    clock.now += 5.0  # of which 3 to write a checkpoint
    reporter.checkpoint(150, 3.0)
    reporter.step(200, 0.68, 12.0)
    reporter.finish(
        "done", training_seconds=9.0, evaluation_seconds=0.0, total_seconds=10.0, steps=200
    )
    output = stream.getvalue()
    assert "time:2.00s" in output
    assert "only training time: 6.00s, average: 30.00ms/iter" in output
    assert "only checkpoint time: 3.00s" in output
    events = read_events(tmp_path)
    assert [event["event"] for event in events] == ["start", "step", "checkpoint", "step", "result"]
    assert (events[2]["step"], events[2]["seconds"]) == (150, 3.0)


@pytest.mark.parametrize("end", ["interrupted", "close"])
def test_ends_that_sum_nothing_up(tmp_path: Path, end: str) -> None:
    stream = io.StringIO()
    reporter = make(tmp_path, stream, Clock())
    reporter.start()
    reporter.say("resumed")
    if end == "close":
        reporter.close()
    else:
        reporter.interrupted("stopped by a signal")
    lines = ["resumed"] + ["stopped by a signal"] * (end == "interrupted")
    assert stream.getvalue().splitlines() == lines
    events = ["start"] + ["interrupted"] * (end == "interrupted")
    assert [event["event"] for event in read_events(tmp_path)] == events


def test_failure_is_recorded(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = make(tmp_path, stream, clock)
    reporter.start()
    clock.now += 1
    reporter.step(7, 0.5, 1.0)
    reporter.fail("loss is not finite at step 8")
    last = read_events(tmp_path)[-1]
    assert (last["event"], last["step"]) == ("error", 7)
    assert last["message"] == "loss is not finite at step 8"


def test_events_are_on_disk_at_once_and_appended(tmp_path: Path) -> None:
    for expected in (1, 2):
        reporter = make(tmp_path, io.StringIO(), Clock())
        reporter.start()
        # Neither finished nor closed: as a killed process leaves it.
        assert [event["event"] for event in read_events(tmp_path)] == ["start"] * expected


def test_a_truncated_line_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "st')
    make(tmp_path, io.StringIO(), Clock()).start()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == '{"event": "st'
    assert json.loads(lines[2])["event"] == "start"


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    import numpy as np

    log = EventLog(str(tmp_path / "log"))
    fields = {
        "a": np.float32("nan"),
        "b": np.int64(3),
        "c": [math.inf, (1, None)],
        "d": Path("x\nyé"),
        "e": {"f": -math.inf},
    }
    log.write("odd", 1, fields)
    log.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    got = json.loads(line)
    del got["time"]
    assert got == {
        "event": "odd", "step": 1,
        "a": None, "b": 3, "c": [None, [1, None]], "d": "x\nyé", "e": {"f": None},
    }  # fmt: skip


def one_line_naming(error: BaseException, path: Path) -> bool:
    return "\n" not in str(error) and str(path) in str(error) and "--run_dir" in str(error)


def test_run_dir_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--run_dir") as caught:
        make(tmp_path / "file" / "run", io.StringIO(), Clock())
    assert one_line_naming(caught.value, tmp_path / "file" / "run")


def test_full_disk_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    reporter = make(tmp_path, io.StringIO(), Clock())
    with pytest.raises(ValueError, match=os.strerror(errno.ENOSPC)) as caught:
        reporter.start()
    assert one_line_naming(caught.value, tmp_path)


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from dlrm.reporting import Reporter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
reporter = Reporter({path!r}, {{}}, rank=0, size=1, global_batch=10, total_steps=10**6)
reporter.start()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for step in range(1, 1000):
    reporter.step(step, 0.5, 1.0)
reporter.finish("end", training_seconds=1, evaluation_seconds=0, total_seconds=1, steps=999)
"""


def test_files_that_fail_later_do_not_end_the_run(tmp_path: Path) -> None:
    script = LIMITED.format(root=str(ROOT), path=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("warning: ")]) == 1
    assert len([line for line in lines if line.startswith("Iteration:")]) == 999
    assert any(line.startswith("| 10 |") for line in lines)


@pytest.fixture
def terminal() -> Iterator[tuple[Any, Any]]:
    """A real terminal to write to, and a call that hangs up and returns what it showed."""
    master, slave = pty.openpty()
    shown = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def hang_up() -> str:
        stream.close()
        reader.join(10)
        return shown.decode()

    yield stream, hang_up
    stream.close()
    reader.join(10)
    os.close(master)


def test_progress_bar_on_a_terminal(
    terminal: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream, hang_up = terminal
    clock = Clock()
    tell(make(None, stream, clock), clock)
    shown = hang_up()

    assert "\x1b[" in shown
    assert "300/300" in shown
    # The lines are all there, with their tabs, and nothing of the bar in or on them.
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", shown)
    lines = [match for line in plain.splitlines() if (match := ITERATION.match(line))]
    assert [match.group(1) for match in lines] == ["100", "200", "300"]
    # The bar is gone and the cursor back before the table comes.
    assert shown.rindex("\x1b[?25h") < shown.index("finished: ")
    assert "\x1b" not in shown[shown.index("total time") :]


def test_no_progress_bar_on_the_terminal_that_open_mpi_makes(
    terminal: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    stream, hang_up = terminal
    clock = Clock()
    tell(make(None, stream, clock), clock)
    assert "\x1b" not in hang_up()


def test_import_is_light() -> None:
    script = (
        "import sys, dlrm.reporting; "
        "heavy = {'tensorflow', 'tensorboard', 'matplotlib', 'rich', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_no_tensorflow_in_a_whole_run(tmp_path: Path) -> None:
    script = (
        "import sys; from dlrm.reporting import Reporter; "
        f"r = Reporter({str(tmp_path)!r}, {{}}, rank=0, size=1, global_batch=1, total_steps=1); "
        "r.start(); r.step(1, 0.5, 1.0); "
        "r.finish('', training_seconds=1, evaluation_seconds=0, total_seconds=1, steps=1); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
