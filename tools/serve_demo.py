"""The demo of serving, `make serve`: exports a checkpoint, serves it, asks it, compares and stops.

    python3 -m tools.serve_demo CHECKPOINT DATA OUT [--samples N]

It calls the commands that users call. The logits to compare with are those of the trainer itself,
with the checkpoint in its tables.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm.checkpoint.describe import newest
    from dlrm.checkpoint.manifest import read_manifest
    from dlrm.data import open_split
    from dlrm.data.batch import Ids
    from serving.artifact import DESCRIPTION
    from serving.id_columns import IdColumns, SampleIds
    from serving.latency import Latency, latency_table
    from serving.scorer import Scorer
    from serving.triton.client import PROTOCOLS, ScoringClient, inputs_of
    from serving.triton.model_config import LOGIT
    from serving.triton.process import running_server

TOLERANCE = 1e-5
BATCH_SIZES = (1, 64)
_SERVING = (sys.executable, "-m", "serving")


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
    dense, data_ids, _ = source.read(0, min(flags.samples, source.num_samples))
    ids = IdColumns.of_data(len(source.vocab_sizes), source.bag_layout).lay_out(data_ids)
    _export(checkpoint, flags.out)
    begin = time.perf_counter()
    with running_server(flags.out) as server:
        print(f"{server.line} ({time.perf_counter() - begin:.1f} s)", flush=True)
        found = {}
        latencies = []
        for protocol in PROTOCOLS:
            for size in BATCH_SIZES:
                logits, latency = _ask(server.addresses[protocol], protocol, dense, ids, size)
                found[protocol, size] = logits
                latencies.append(latency)
    print(latency_table(latencies))
    with Scorer.open(flags.out) as scorer:
        for (protocol, size), logits in found.items():
            # Request by request, as on some CPUs the last bits depend on the size of a batch.
            parts = [slice(start, start + size) for start in range(0, len(dense), size)]
            answers = [scorer.score(dense[part], *ids.rows(part)) for part in parts]
            expected = np.concatenate(answers)
            if not np.array_equal(logits, expected):
                raise ValueError(
                    f"{protocol}, {size} a request: expected the scorer's logits bit for bit, "
                    "found others"
                )
    print(f"all {len(found) * len(dense):,} logits from the server are the scorer's, bit for bit")
    with cli.stderr_on_failure():
        trained = trainer_logits(checkpoint, flags.data, dense, data_ids)
    difference = float(np.abs(expected - trained).max())
    print(f"largest difference from the trainer's {len(dense):,} logits: {difference:.1e}")
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


def _ask(
    url: str, protocol: str, dense: NDArray[Any], ids: SampleIds, size: int
) -> tuple[NDArray[np.float32], Latency]:
    """Sends all samples, `size` a request; returns their logits and the latencies."""
    logits, seconds = [], []
    with ScoringClient(url, protocol) as client:
        client.outputs(inputs_of(dense[:size], ids.rows(slice(size))))  # connects
        for start in range(0, len(dense), size):
            part = slice(start, start + size)
            inputs = inputs_of(dense[part], ids.rows(part))
            begin = time.perf_counter()
            logits.append(client.outputs(inputs)[LOGIT])
            seconds.append(time.perf_counter() - begin)
    return np.concatenate(logits), Latency.of(protocol, size, seconds)


def trainer_logits(
    checkpoint: Path, data_dir: Path, dense: NDArray[Any], ids: Ids
) -> NDArray[np.float32]:
    """The logits that the trainer gives to samples with the weights of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        data_dir: The data that it was trained on.
        dense: float32 [samples, columns].
        ids: int32 [samples, tables], or bags of them.

    Returns:
        The logits, float32 [samples].

    Raises:
        ValueError: The checkpoint does not fit the data.
    """
    from dataset import open_data
    from dlrm.config import Config
    from dlrm.train.build import join
    from model import build_model
    from serving.inference_benchmark import Trained

    settings = dict(read_manifest(checkpoint).settings)
    settings.update(mode="test", data_dir=str(data_dir), run_dir=None, checkpoint_dir=None)
    settings.update(mlperf_log=None)  # of the training
    # One rank with all samples in one batch; the results of training do not depend on them.
    settings.update(global_batch_size=len(dense), resume=str(checkpoint))
    settings.update(custom_interact=False, custom_mlp=False)
    config = Config.of(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
    )
    collective = join(config)
    data = open_data(config, collective.rank, collective.size)
    return Trained(config, collective, data, build_model).score(dense, ids)


if __name__ == "__main__":
    sys.exit(main())
