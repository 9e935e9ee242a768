"""`python3 -m serving serve`: starts Triton's server with an artifact, until it is told to stop."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from serving.commands.repository import add_model_flags, model_options

_TEXT = (
    "Serve an artifact over HTTP and gRPC in the KServe v2 protocol, until SIGTERM or Ctrl-C; the"
    " requests that were taken are finished then."
)


def add_parser(commands: Any) -> None:
    """Defines the command and its flags."""
    parser = commands.add_parser("serve", help=_TEXT, description=_TEXT)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of an export")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}_port",
            type=int,
            default=port,
            metavar="PORT",
            help=f"port of {name}; 0 for any free one (default: {port})",
        )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for every interface (default: %(default)s)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="model repository to serve; gets the artifact as a new version unless that is its"
        " newest one, and versions that are added later are loaded (default: a temporary one)",
    )
    parser.add_argument(
        "--stop_timeout_s",
        type=int,
        default=30,
        metavar="N",
        help="how long requests may take to finish when the server stops (default: %(default)s)",
    )
    add_model_flags(parser)
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from serving.artifact import read_artifact, verify_artifact
    from serving.triton.installation import server_program
    from serving.triton.repository import add_scorer_version, has_newest
    from serving.triton.server import LOG, Addresses, TritonServer

    options = model_options(flags)
    server_program()  # whose absence is better known before the work than after it
    addresses = Addresses(flags.host, flags.http_port, flags.grpc_port, flags.metrics_port)
    addresses = addresses.with_free_ports()
    artifact = read_artifact(flags.artifact)
    if options.verify:
        verify_artifact(artifact)
    work = Path(tempfile.mkdtemp(prefix="serving_"))
    stopped = False
    try:
        poll = flags.repository is not None
        repository = flags.repository or work / "repository"
        if not has_newest(artifact, repository, flags.name):
            add_scorer_version(artifact, repository, flags.name, None, options, refer=not poll)
        with TritonServer(
            repository, addresses, work, poll=poll, stop_timeout=flags.stop_timeout_s
        ) as server:
            if server.wait_until_ready(flags.name):
                host, http = addresses.host, addresses.http
                print(
                    f"serving {flags.name}: http={host}:{http} grpc={host}:{addresses.grpc} "
                    f"metrics=http://{host}:{addresses.metrics}/metrics log={server.log}",
                    flush=True,
                )
                server.wait()
        stopped = True
    finally:
        # After a failure the log stays.
        if stopped or not (work / LOG).exists():
            shutil.rmtree(work, ignore_errors=True)
    print("stopped; every request that was taken is answered")
    return 0
