"""Days that are appended one after another, compared with retraining and with an old model.

    python3 -m benchmarks.days FOLDER [--days N] [--rows N] [--seed N] [--ways NAME ...]
        [--picture FILE]

Ids come and go, and what they mean drifts (`benchmarks/drifting_days.py`). After each day every way
has a model, whose AUC on the next day is measured as serving would have it: ids that the model's
dictionary lacks get id 0. The best possible AUC on that day is printed beside them.

    appended    the day's log behind the old dictionary, the old checkpoint trained on with it
    retrained   a new dictionary and a new model, from the logs of all days so far
    old         the model of the first day
    dynamic     no dictionary: the id of a value is its number, rows are made at its second batch
                and forgotten after two days without it (docs/dynamic_tables.md)

Everything runs as a user's commands do, each training in a process of its own. What is done is kept
in FOLDER, and the same command goes on after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

from dlrm import cli

with cli.project_environment():
    from benchmarks.days_plot import plot_days
    from benchmarks.drifting_days import DriftOptions, drifting_days, hashed_schema
    from dlrm.checkpoint.directory import finished
    from dlrm.checkpoint.manifest import ROWS, read_manifest, tables_file
    from dlrm.checkpoint.safetensors_file import TensorReader
    from dlrm.formats.json_files import read_json_object, write_json_object
    from preprocess.__main__ import main as preprocess

ROOT = Path(__file__).resolve().parents[1]
BATCH = 256
RULES = ["--rules=dlrm", "--frequency_threshold=2", "--columns", "--test_fraction=0"]
TRAINING = [
    f"--global_batch_size={BATCH}",
    "--embedding_dim=8",
    "--bottom_mlp=32,8",
    "--top_mlp=32,1",
    "--optimizer=rowwise_adagrad",
    "--dense_optimizer=adagrad",
    "--lr=0.05",
    "--lr_schedule=constant",
    "--warmup_steps=0",
    "--eval_in_last",
    "--auc_target=1",
]


@dataclass(frozen=True)
class DayResult:
    """What one way had at the end of a day.

    Attributes:
        auc: AUC on the next day.
        rows: Rows of all tables.
        checkpoint_bytes: Bytes of its checkpoint.
        memory_bytes: Peak resident memory of the process that trained or evaluated.
        samples: Samples trained on this day.
        seconds: Seconds of preprocessing and of that process.
    """

    auc: float
    rows: int
    checkpoint_bytes: int
    memory_bytes: int
    samples: int
    seconds: float


class Days:
    """The days of one folder, and the models after each of them; days are counted from 1.

    Args:
        folder: Where everything is kept.
        rows: Rows of a day's log.
        seed: Seed of the logs.
        options: The drift of the logs.
    """

    def __init__(
        self, folder: Path, rows: int, seed: int, options: DriftOptions | None = None
    ) -> None:
        self.folder, self._rows, self._seed = folder, rows, seed
        self._options = options or DriftOptions()
        shape = (self._options.num_dense, len(self._options.live_ids))
        self._ingest = [*RULES, f"--num_dense={shape[0]}", f"--num_categorical={shape[1]}"]

    def write_logs(self, count: int) -> list[float]:
        """Writes the logs of the first days; returns the best possible AUC of each."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        best, days = [], drifting_days(self._options, self._rows, self._seed)
        for number, day in zip(range(1, count + 1), days):
            self._log(number).write_text(day.text)
            best.append(day.best_auc)
            print(f"day {number}: best AUC {day.best_auc:.4f}, {day.fresh:.1%} of its ids are new")
        return best

    def _log(self, day: int) -> Path:
        return self.folder / "logs" / f"day_{day}.tsv"

    def result(self, way: str, day: int) -> DayResult:
        """Returns the result of a way after a day; does what is not done yet."""
        place = self.folder / way / str(day)
        done = place / "result.json"
        if not done.exists():
            place.mkdir(parents=True, exist_ok=True)
            write_json_object(done, asdict(WAYS[way](self, day, place)), indent=1)
        return DayResult(**read_json_object(done, "remove its folder and start again"))

    def appended(self, day: int, place: Path) -> DayResult:
        """The day behind the day before."""
        before = self.folder / "appended" / str(day - 1)
        if day == 1:
            return self._trained(place, [1], 1, [], [])
        return self._trained(
            place,
            [day],
            day,
            [f"--append_day={before / 'data'}"],
            [f"--append_day={before / 'checkpoints'}"],
        )

    def retrained(self, day: int, place: Path) -> DayResult:
        """All days so far, from nothing."""
        if day == 1:
            return self.result("appended", 1)
        return self._trained(place, list(range(1, day + 1)), day, [], [])

    def old(self, day: int, place: Path) -> DayResult:
        """The model of the first day, as it was."""
        if day == 1:
            return self.result("appended", 1)
        first = self.folder / "appended" / "1"
        start = time.perf_counter()
        resume = [f"--resume={first / 'checkpoints'}", "--mode=test"]
        return self._run(place, first / "data", day, resume, first / "checkpoints", start)

    def dynamic(self, day: int, place: Path) -> DayResult:
        """The day behind the day before, its values without a dictionary."""
        start = time.perf_counter()
        schema = place / "schema.json"  # which is YAML, too
        write_json_object(schema, hashed_schema(self._options), indent=1)
        for part, number in (("train", day), ("test", day + 1)):
            flags = ["--rules=generic", f"--schema={schema}", "--columns"]
            _must(preprocess([str(self._log(number)), f"--output={place / part}", *flags]))
            _link(place / "split" / part, place / part / "train")
        days_kept = 2 * (self._rows // BATCH)
        flags = ["--embedding=dynamic", "--admit_after=1", f"--evict_after={days_kept}"]
        if day > 1:
            before = self.folder / "dynamic" / str(day - 1)
            flags.append(f"--append_day={before / 'checkpoints'}")
        checkpoints = place / "checkpoints"
        flags += [f"--checkpoint_dir={checkpoints}", "--keep_checkpoints=1"]
        return self._measure(place, flags, checkpoints, start)

    def _trained(
        self, place: Path, logs: list[int], day: int, ingest: list[str], training: list[str]
    ) -> DayResult:
        """Preprocesses the logs of some days and trains on them."""
        start = time.perf_counter()
        paths = [str(self._log(number)) for number in logs]
        _must(preprocess([*paths, f"--output={place / 'data'}", *self._ingest, *ingest]))
        checkpoints = place / "checkpoints"
        flags = [*training, f"--checkpoint_dir={checkpoints}", "--keep_checkpoints=1"]
        return self._run(place, place / "data", day, flags, checkpoints, start)

    def _run(
        self,
        place: Path,
        data: Path,
        day: int,
        flags: list[str],
        checkpoints: Path,
        start: float,
    ) -> DayResult:
        """Runs main.py on the training data of `data`, tested on the next day's log."""
        following = place / "next"
        log = str(self._log(day + 1))
        _must(preprocess([log, f"--output={following}", *self._ingest, f"--dictionary={data}"]))
        for name, target in (("train", data / "train"), ("test", following / "train")):
            _link(place / "split" / name, target)
        return self._measure(place, flags, checkpoints, start)

    def _measure(self, place: Path, flags: list[str], checkpoints: Path, start: float) -> DayResult:
        """Runs main.py on the split folders of a place."""
        run = place / "run"
        command = [f"--data_dir={place / 'split'}", f"--run_dir={run}", *TRAINING, *flags]
        memory = _peak_memory([sys.executable, "main.py", *command], place / "output.txt")
        lines = (run / "events.jsonl").read_text().splitlines()
        events = {event["event"]: event for event in map(json.loads, lines)}
        checkpoint = finished(checkpoints)[-1]
        return DayResult(
            events["evaluation"]["auc"],
            _rows(checkpoint),
            sum(file.stat().st_size for file in checkpoint.iterdir()),
            memory,
            events["result"]["steps"] * BATCH if "result" in events else 0,
            round(time.perf_counter() - start, 1),
        )


# Another way to train from day to day is one more entry.
WAYS: dict[str, Callable[[Days, int, Path], DayResult]] = {
    "appended": Days.appended,
    "retrained": Days.retrained,
    "old": Days.old,
    "dynamic": Days.dynamic,
}


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())


def _rows(checkpoint: Path) -> int:
    """The number of rows in a checkpoint of one rank."""
    name = tables_file(0, 1)
    with TensorReader(checkpoint / name, read_manifest(checkpoint).files[name]) as reader:
        return int(reader.tensors[ROWS][1][0])


def _must(code: int) -> None:
    if code:
        raise ValueError("preprocessing failed; its message is above")


def _peak_memory(command: Sequence[str], output: Path) -> int:
    """Runs a command that must succeed; returns its peak resident memory in bytes.

    Raises:
        ValueError: It failed; the message is its last line.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"{output}: expected a run to its end, found {' '.join(last)}")
    return usage.ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each day and way; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("folder", type=Path, help="where logs, data, checkpoints and results are kept")
    add("--days", type=int, default=7, help="days that are trained on (default: %(default)s)")
    add("--rows", type=int, default=50_000, help="rows of a day's log (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of the logs (default: %(default)s)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to train (default: all)")
    add("--picture", metavar="FILE", help="draw AUC and rows as a PNG file (default: none)")
    options = parser.parse_args(arguments)
    days = Days(options.folder, options.rows, options.seed)
    best = days.write_logs(options.days + 1)
    print(
        "day  way        AUC next day (best)     rows  checkpoint       memory    samples  seconds"
    )
    results: dict[str, list[DayResult]] = {way: [] for way in options.ways}
    for day in range(1, options.days + 1):
        for way in options.ways:
            found = days.result(way, day)
            results[way].append(found)
            print(
                f"{day:3}  {way:9}  {found.auc:.4f}        ({best[day]:.4f})  {found.rows:7,}"
                f"  {found.checkpoint_bytes / 1e6:8.2f} MB  {found.memory_bytes >> 20:5} MiB"
                f"  {found.samples:7,}  {found.seconds:7.1f}",
                flush=True,
            )
    if options.picture:
        plot_days(
            options.picture,
            best[1:],
            {way: [found.auc for found in each] for way, each in results.items()},
            {way: [found.rows for found in each] for way, each in results.items()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
