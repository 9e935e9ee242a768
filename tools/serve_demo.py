"""The demo of serving, `make serve`: exports a checkpoint, serves it, asks it, compares and stops.

    python3 -m tools.serve_demo CHECKPOINT DATA OUT [--samples N]

It calls the commands that users call. The logits to compare with are those of the trainer itself,
with the checkpoint in its tables.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm.checkpoint.describe import newest
    from dlrm.checkpoint.manifest import read_manifest
    from dlrm.data import open_split
    from serving.artifact import DESCRIPTION
    from serving.latency import Latency, latency_table
    from serving.scorer import Scorer
    from serving.triton.client import PROTOCOLS, ScoringClient

TOLERANCE = 1e-5
BATCH_SIZES = (1, 64)
_SERVING = (sys.executable, "-m", "serving")
_SERVER_LINE = re.compile(r"http=(\S+) grpc=(\S+) metrics=(\S+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = cli.Parser(
        prog="python3 -m tools.serve_demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a --checkpoint_dir")
    parser.add_argument("data", type=Path, help="the folder with `train` and `test`")
    parser.add_argument("out", type=Path, help="folder to make; an artifact there is replaced")
    parser.add_argument("--samples", type=int, default=4096, help="samples to send (default: 4096)")
    flags = parser.parse_args(arguments)
    if flags.samples < 1:
        raise ValueError(f"expected --samples of at least 1, found {flags.samples}")
    checkpoint = newest(flags.checkpoint)
    source = open_split(flags.data / "test", per_category=False)
    dense, ids, _ = source.read(0, min(flags.samples, source.num_samples))
    _export(checkpoint, flags.out)
    with _server(flags.out) as addresses:
        found = {}
        latencies = []
        for protocol in PROTOCOLS:
            for size in BATCH_SIZES:
                logits, latency = _ask(addresses[protocol], protocol, dense, ids, size)
                found[protocol, size] = logits
                latencies.append(latency)
    print(latency_table(latencies))
    with Scorer.open(flags.out) as scorer:
        for (protocol, size), logits in found.items():
            # Request by request, as on some CPUs the last bits depend on the size of a batch.
            parts = [slice(start, start + size) for start in range(0, len(ids), size)]
            expected = np.concatenate([scorer.score(dense[part], ids[part]) for part in parts])
            if not np.array_equal(logits, expected):
                raise ValueError(
                    f"{protocol}, {size} a request: expected the scorer's logits bit for bit, "
                    "found others"
                )
    print(f"all {len(found) * len(ids):,} logits from the server are the scorer's, bit for bit")
    with cli.stderr_on_failure():
        trained = trainer_logits(checkpoint, flags.data, dense, ids)
    difference = float(np.abs(expected - trained).max())
    print(f"largest difference from the trainer's {len(ids):,} logits: {difference:.1e}")
    if difference > TOLERANCE:
        raise ValueError(f"expected a difference of at most {TOLERANCE}, found {difference}")
    return 0


def _export(checkpoint: Path, out: Path) -> None:
    """Exports the checkpoint, in the place of an earlier artifact."""
    if (out / DESCRIPTION).exists():
        shutil.rmtree(out)
    exported = subprocess.run(
        [*_SERVING, "export", checkpoint, out], stderr=subprocess.PIPE, text=True, check=False
    )
    if exported.returncode:  # else TensorFlow's notices, which would hide our lines
        print(exported.stderr, end="", file=sys.stderr)
        raise OSError("expected the checkpoint to be exported, found the error above")


@contextlib.contextmanager
def _server(artifact: Path) -> Iterator[dict[str, str]]:
    """Serves an artifact on free ports; yields the address of each protocol."""
    ports = [f"--{name}_port=0" for name in (*PROTOCOLS, "metrics")]
    process = subprocess.Popen(
        [*_SERVING, "serve", artifact, *ports], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        begin = time.perf_counter()
        line = process.stdout.readline()
        if (addresses := _SERVER_LINE.search(line)) is None:
            raise OSError("expected the server to start, found that it did not; see above")
        print(f"{line.rstrip()} ({time.perf_counter() - begin:.1f} s)", flush=True)
        yield dict(zip(PROTOCOLS, addresses.groups()))
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.stdout.read(), end="", flush=True)
        code = process.wait()
    if code:
        raise OSError(f"expected the server to stop with code 0, found {code}")


def _ask(
    url: str, protocol: str, dense: NDArray[Any], ids: NDArray[Any], size: int
) -> tuple[NDArray[np.float32], Latency]:
    """Sends all samples, `size` a request; returns their logits and the latencies."""
    logits, seconds = [], []
    with ScoringClient(url, protocol) as client:
        client.logits(dense=dense[:size], ids=ids[:size])  # connects
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            begin = time.perf_counter()
            logits.append(client.logits(dense=dense[part], ids=ids[part]))
            seconds.append(time.perf_counter() - begin)
    return np.concatenate(logits), Latency.of(protocol, size, seconds)


def trainer_logits(
    checkpoint: Path, data_dir: Path, dense: NDArray[Any], ids: NDArray[Any]
) -> NDArray[np.float32]:
    """The logits that the trainer gives to samples with the weights of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        data_dir: The data that it was trained on.
        dense: float32 [samples, columns].
        ids: int32 [samples, tables].

    Returns:
        The logits, float32 [samples].

    Raises:
        ValueError: The checkpoint does not fit the data.
    """
    import tensorflow as tf

    from dataset import open_data
    from dlrm.checkpoint.resume import resume
    from dlrm.config import Config
    from dlrm.train.build import build_trainer, join, place_tables
    from dlrm.train.run import agree_on_data, describe, state_of
    from model import build_model

    settings = dict(read_manifest(checkpoint).settings)
    settings.update(mode="test", data_dir=str(data_dir), run_dir=None, checkpoint_dir=None)
    # One rank with all samples in one batch; the results of training do not depend on them.
    settings.update(global_batch_size=len(ids), custom_interact=False, resume=str(checkpoint))
    config = Config.of(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
    )
    collective = join(config)
    data = agree_on_data(config, collective, open_data)
    backend, _ = place_tables(config, collective, data)
    trainer = build_trainer(config, backend, collective, data, build_model)
    record = describe(config, data)
    resume(str(checkpoint), None, record, state_of(trainer), collective, ignore_data_change=True)
    logits, bad = trainer.step.score(tf.constant(dense), tf.constant(ids))
    assert not int(bad)
    return logits.numpy()


if __name__ == "__main__":
    sys.exit(main())
