"""`python3 -m dlrm_v3.benchmark`: MLPerf's load generator on a trained DLRMv3."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dlrm import cli
from dlrm_v3.benchmark.flags import data_folder, mode_of, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    flags = parser().parse_args(arguments)
    mode = mode_of(flags)
    folder, preset = data_folder(flags)
    # Before TensorFlow is loaded: what it tells is not for those who measure.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with cli.project_environment():
        from dlrm.checkpoint.describe import newest
        from dlrm_v3.benchmark.run import Benchmark
        from dlrm_v3.data.stream import open_stream
        from serving.loadgen.settings import import_loadgen

        import_loadgen()
        cli.allow_many_files()
        stream = open_stream(folder)
        if preset not in (None, stream.preset):
            raise ValueError(
                f"{folder}: expected data of the preset {preset}, found {stream.preset}; name the "
                "folder itself by --dataset"
            )
        checkpoint = newest(flags.model_path)
        with cli.stderr_on_failure():
            import tensorflow as tf

            from dlrm_v3.hstu_op import is_built
            from dlrm_v3.scorer import HstuScorer

            tf.config.list_physical_devices()  # CUDA's library announces itself here
        encoding = flags.sparse_quant_type if flags.sparse_quant else "float32"
        scorer = HstuScorer.open(checkpoint, stream, encoding)
        ops = "fused ops" if is_built() else "plain TensorFlow (`make hstu_op` builds fused ops)"
        print(f"{checkpoint}, tables in {encoding}, {ops}; {stream.preset} in {folder}", flush=True)
        return Benchmark(flags, mode, stream, scorer.max_history, scorer.score).run()


if __name__ == "__main__":
    sys.exit(main())
