"""The demo of DLRMv3, `make dlrm-v3`: data, training, and MLPerf's inference benchmark.

    python3 -m tools.dlrm_v3_demo OUT [--preset NAME] [--ranks N]

It calls the commands that users call, and ends with one screen of their results.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    from dlrm.formats.json_files import read_json_object
    from dlrm_v3.accuracy import read_log, report
    from dlrm_v3.config import PRESETS
    from serving.loadgen import summary

_PYTHON = (sys.executable, "-m")
_SERVER_SHARE = 0.3  # of Offline's rate: what Server is asked to bear
_SHORTEST_RUN_MS = 10_000  # MLPerf's rules ask for ten minutes
_EVAL_BATCHES = 30  # of a timestamp, a third: most of the demo's time is training
_FIGURES = ("normalised_entropy", "accuracy", "auc", "gauc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = cli.Parser(
        prog="python3 -m tools.dlrm_v3_demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="folder to make; data is kept, the rest replaced")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="tiny", help="(default: %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="of the training (default: 1)")
    flags = parser.parse_args(arguments)
    begin = time.perf_counter()
    demo = _Demo(flags.out, flags.preset)
    demo.generate()
    demo.train(flags.ranks)
    trained = demo.test()
    lines = [*_table(demo.best(), trained), ""]
    for tables in ("float32", "int8"):
        lines += demo.accuracy(tables, trained)
    lines += ["", *demo.performance()]
    print(f"\n{'DLRMv3':=^78}")
    print("\n".join(lines))
    print(f"\npicture: {demo.run / 'run.png'}   all of it took {time.perf_counter() - begin:.0f} s")
    return 0


class _Demo:
    """The commands of the demo.

    Args:
        out: The folder for everything.
        preset: The preset of data and model.

    Attributes:
        run: The folder of the training's reports.
    """

    def __init__(self, out: Path, preset: str) -> None:
        self.run = out / "run"
        self._data, self._checkpoints = out / preset, out / "checkpoints"
        self._test, self._loadgen = out / "test", out / "loadgen"
        self._preset = preset

    def generate(self) -> None:
        """Writes the data, or what is missing of it."""
        _call("dlrm_v3.generate", f"--preset={self._preset}", self._data)

    def train(self, ranks: int) -> None:
        """Trains anew, on one rank or several."""
        for folder in (self.run, self._checkpoints):
            shutil.rmtree(folder, ignore_errors=True)
        launch = ("launch", "-np", str(ranks), "--", "-m") if ranks > 1 else ()
        _call(
            *launch,
            "dlrm_v3.train",
            f"--data_dir={self._data}",
            f"--checkpoint_dir={self._checkpoints}",
            f"--run_dir={self.run}",
            f"--eval_batches={_EVAL_BATCHES}",
        )

    def test(self) -> dict[str, float]:
        """Evaluates the checkpoint as training does; the figures over all inference timestamps."""
        shutil.rmtree(self._test, ignore_errors=True)
        _call(
            "dlrm_v3.train",
            "--mode=test",
            f"--data_dir={self._data}",
            f"--checkpoint_dir={self._checkpoints}",
            f"--run_dir={self._test}",
        )
        with (self._test / "events.jsonl").open(encoding="utf-8") as file:
            events = [json.loads(line) for line in file]
        last = [event for event in events if event["event"] == "evaluation"][-1]
        return {name: last[f"lifetime_{name}"] for name in _FIGURES}

    def best(self) -> dict[str, Any]:
        """The best possible figures of the inference timestamps."""
        part: dict[str, Any] = read_json_object(
            self._data / "best.json", "remove the folder and run again"
        )["inference"]
        return part

    def accuracy(self, tables: str, trained: dict[str, float]) -> list[str]:
        """Predicts every inference request under LoadGen, and compares with the trainer."""
        quantised = (
            () if tables == "float32" else ("--sparse-quant", f"--sparse-quant-type={tables}")
        )
        output = self._benchmark("Offline", f"accuracy_{tables}", "--compute-eval", *quantised)
        names = ("NE", "accuracy", "AUC", "GAUC")
        reference = dict(zip(names, (trained[name] for name in _FIGURES)))
        lines, held = report(read_log(output / summary.ACCURACY), reference)
        if not held:
            raise ValueError(f"{output}: expected the trainer's accuracy; {'; '.join(lines[1:])}")
        return [f"LoadGen, AccuracyOnly, tables in {tables}: {lines[0]}", *lines[1:]]

    def performance(self) -> list[str]:
        """Runs Offline, then Server with a share of its rate."""
        shortest = f"--min-duration-ms={_SHORTEST_RUN_MS}"
        offline = summary.values(self._benchmark("Offline", "offline", shortest))
        rate = float(offline["Samples per second"])
        asked = max(1.0, _SERVER_SHARE * rate)
        flags = (shortest, f"--target-qps={asked:.1f}", "--output-trace")
        output = self._benchmark("Server", "server", *flags)
        server = summary.values(output)
        percentiles = "   ".join(
            f"{share} % {float(server[f'{share}.00 percentile latency (ns)']) / 1e6:.1f} ms"
            for share in (50, 90, 99)
        )
        return [
            f"LoadGen, Offline: {offline['Result is']}, {rate:,.0f} requests/s",
            f"LoadGen, Server:  {server['Result is']}, {asked:,.0f} requests/s asked;   "
            f"{percentiles}   (bound: 99 % within 80 ms)",
            f"trace: {output / 'trace.json'}, for ui.perfetto.dev",
        ]

    def _benchmark(self, scenario: str, name: str, *flags: str) -> Path:
        output = self._loadgen / name
        _call(
            "dlrm_v3.benchmark",
            f"--dataset={self._data}",
            f"--model-path={self._checkpoints}",
            f"--scenario-name={scenario}",
            f"--output={output}",
            *flags,
        )
        return output


def _call(*words: str | Path) -> None:
    """Runs a command of the project and shows it.

    Raises:
        OSError: It fails.
    """
    print("\n$ python3 -m", *words, flush=True)
    if subprocess.run([*_PYTHON, *words], check=False).returncode:
        raise OSError(f"expected {words[0]} to succeed, found the error above")


def _table(best: dict[str, Any], trained: dict[str, float]) -> list[str]:
    """The figures of the inference timestamps, which training has not seen."""
    rows = [("trained", trained), ("best possible", best)]
    lines = [f"{'inference timestamps':<22}{'NE':>10}{'accuracy':>10}{'AUC':>10}{'GAUC':>10}"]
    for title, values in rows:
        figures = (values.get(name) for name in _FIGURES)
        texts = ("" if value is None else f"{value:.4f}" for value in figures)
        lines.append(f"{title:<22}" + "".join(f"{text:>10}" for text in texts))
    return lines


if __name__ == "__main__":
    sys.exit(main())
