"""`python3 -m serving repository`: adds a version of an artifact to a server's model repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

PLATFORMS = ("scorer", "triton_tensorflow", "tensorflow_serving")
_TEXT = (
    "Add a version of an artifact to a model repository, complete or not at all. A server that"
    " polls the repository loads it and keeps answering meanwhile."
)


def add_parser(commands: Any) -> None:
    """Defines the command and its flags."""
    parser = commands.add_parser("repository", help=_TEXT, description=_TEXT)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of an export")
    parser.add_argument("repository", type=Path, metavar="REPO", help="folder; made if missing")
    parser.add_argument("--version", type=int, help="number of the version (default: the next)")
    parser.add_argument(
        "--platform",
        choices=PLATFORMS,
        default=PLATFORMS[0],
        help="what answers: the scorer in Triton's Python backend, or the SavedModel in Triton's"
        " TensorFlow backend or in TensorFlow Serving (default: %(default)s)",
    )
    add_model_flags(parser)
    parser.set_defaults(run=_run)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags that become the configuration of a model."""
    flag = parser.add_argument
    flag("--name", default="dlrm", help="name of the model (default: %(default)s)")
    flag("--max_batch_size", **_count(4096, "most samples of a request, and of a batch"))
    flag(
        "--preferred_batch_sizes",
        type=_sizes,
        default=(),
        metavar="256,1024",
        help="batch sizes to wait for while the queue delay lasts (default: none)",
    )
    flag(
        "--max_queue_delay_us",
        **_count(0, "how long a request may wait for others to make a batch, microseconds"),
    )
    flag("--max_queue_size", **_count(0, "most requests that wait; 0 for no limit"))
    flag(
        "--request_timeout_ms",
        **_count(0, "how long a request may wait in the queue; 0 for no limit"),
    )
    flag("--instances", **_count(1, "scorers, each a process with its own hot rows"))
    flag("--keep_versions", **_count(1, "newest versions that are served side by side"))
    flag(
        "--hot_share",
        type=float,
        default=1.0,
        help="share of the rows' bytes that is read into memory (default: %(default)s)",
    )
    flag("--threads", **_count(0, "threads of a scorer; 0 for one per core"))
    flag(
        "--no_verify",
        action="store_true",
        help="open a version without reading and checking its files first",
    )


def model_options(flags: argparse.Namespace) -> Any:
    """The values of these flags, as `ModelOptions`."""
    from serving.triton.model_config import ModelOptions

    return ModelOptions(
        max_batch_size=flags.max_batch_size,
        preferred_batch_sizes=flags.preferred_batch_sizes,
        max_queue_delay_us=flags.max_queue_delay_us,
        max_queue_size=flags.max_queue_size,
        request_timeout_ms=flags.request_timeout_ms,
        instances=flags.instances,
        keep_versions=flags.keep_versions,
        hot_share=flags.hot_share,
        threads=flags.threads,
        verify=not flags.no_verify,
    )


def _run(flags: argparse.Namespace) -> int:
    from serving.artifact import read_artifact, verify_artifact
    from serving.triton import repository

    add = {
        "scorer": repository.add_scorer_version,
        "triton_tensorflow": repository.add_saved_model_version,
        "tensorflow_serving": repository.add_tensorflow_serving_version,
    }[flags.platform]
    artifact = read_artifact(flags.artifact)
    if not flags.no_verify:
        verify_artifact(artifact)
    number = add(artifact, flags.repository, flags.name, flags.version, model_options(flags))
    print(f"{flags.repository / flags.name}: added version {number}, step {artifact.step}")
    return 0


def _count(default: int, text: str) -> dict[str, Any]:
    """The options of a flag that is a number."""
    return {"type": int, "default": default, "metavar": "N", "help": f"{text} (default: {default})"}


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes like 256,1024, found {text!r}") from None
