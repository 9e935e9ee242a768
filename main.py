"""Trains a DLRM: flags -> Config -> run.

    python3 main.py --data_dir=DATA ...                                        one rank
    horovodrun -np 8 ./hvd_wrapper.sh python3 main.py --data_dir=DATA ...      eight

Flags are the fields of config.Config; a file of flags is given with --flagfile=FILE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import typing
from collections.abc import Iterator
from typing import Any

from absl import app, flags

from dlrm.config import Config

# Read when TensorFlow is imported: its notices would hide our lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def define_flags() -> None:
    """Makes a flag of each field of Config."""
    types = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        text, choices = field.metadata["help"], field.metadata["choices"]
        default: Any = field.default
        if choices:
            flags.DEFINE_enum(field.name, default, choices, text)
        elif types[field.name] is bool:
            flags.DEFINE_bool(field.name, default, text)
        elif types[field.name] in (int, typing.Optional[int]):
            flags.DEFINE_integer(field.name, default, text)
        elif types[field.name] is float:
            flags.DEFINE_float(field.name, default, text)
        elif types[field.name] == tuple[int, ...]:
            flags.DEFINE_list(field.name, [str(units) for units in default], text)
        else:
            flags.DEFINE_string(field.name, default, text)


def config_from_flags() -> Config:
    """The parsed flags as one frozen value.

    Raises:
        ValueError: a flag's value, or several together, make no sense.
    """
    values: dict[str, Any] = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Config)
    }
    for name in ("bottom_mlp", "top_mlp"):
        try:
            values[name] = tuple(int(units) for units in values[name])
        except ValueError:
            raise ValueError(
                f"expected --{name} of integers such as 512,256,128, found {','.join(values[name])}"
            ) from None
    return Config(**values)


@contextlib.contextmanager
def held_back_stderr() -> Iterator[None]:
    """Drops what is written to stderr, unless it ends in an exception.

    TensorFlow's libraries announce themselves while they load, on every rank, before any log level
    applies.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def main(argv: list[str]) -> int:
    """Runs what the flags say; returns the exit code."""
    try:
        if len(argv) > 1:
            raise ValueError(f"expected flags only, found {argv[1]!r}; write --name=value")
        config = config_from_flags()
        # TensorFlow 2.14, imported while absl runs, else begins as TensorFlow 1: `==` of tensors
        # compares their identities then. Set before its import, which sets it too, but too late.
        os.environ["TF2_BEHAVIOR"] = "1"
        # Imports TensorFlow: flag errors and --help come before it.
        with held_back_stderr():
            from dataset import open_data
            from dlrm.train.run import run
            from model import build_model
        if not run(config, open_data, build_model):
            return os.EX_TEMPFAIL  # 75: start it again, and it goes on
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
