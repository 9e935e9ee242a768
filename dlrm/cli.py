"""What all commands share: a parser whose errors are one line, error messages and exit codes.

It imports the standard library alone, so that it can report an error even where the packages are
missing. Independent of any command.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import select
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NoReturn

FAILURE, INTERRUPTED = 1, 130
READER_GONE = 141  # as a shell reports a program that SIGPIPE ended

# What Keras imports if it is installed, for features that this project does not use. Together they
# take a third of the time in which TensorFlow loads.
_UNUSED_BY_US = ("matplotlib", "pandas", "sklearn")

_STDOUT, _STDERR = 1, 2
_ROOT = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ValueError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises the error for `exit_code` to print."""
        raise ValueError(f"{message}; see --help")


def exit_code(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Runs a command; its expected errors become one line on stderr.

    If the reader of stdout has gone, such as `head` after its last line, the command ends quietly.

    Args:
        command: Parses its arguments, works, and returns its exit code. `ValueError` and `OSError`
            are for the user; any other exception is a fault of the program and passes through.
        interrupted: The line for Ctrl-C, such as what was kept.

    Returns:
        The exit code: the command's own, 1 after an error, 130 after Ctrl-C, 141 if it could not go
        on because nobody reads its output.
    """
    try:
        code = command()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr, flush=True)
        code = INTERRUPTED
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            code = READER_GONE
        else:
            print_error(error)
            code = FAILURE
    _flush_stdout()
    return code


def _flush_stdout() -> None:
    """Writes what is left of the output, or drops it if nobody reads it any more.

    Otherwise the interpreter does so when it ends, and reports a reader that has gone.
    """
    with contextlib.suppress(BrokenPipeError):
        if sys.stdout is not None:
            sys.stdout.flush()
    if _reader_has_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def _reader_has_gone() -> bool:
    """Says whether stdout is a pipe without a reader."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are reported whatever one asks for
    return any(events & select.POLLERR for _, events in poll.poll(0))


def print_error(message: object) -> None:
    """Writes one line about an error to stderr."""
    print(f"error: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def project_environment() -> Iterator[None]:
    """Guards the imports of a command: a missing package ends it with one line and the remedy.

    Example:
        with cli.project_environment():
            import numpy as np
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or (_ROOT / package).is_dir() or (_ROOT / f"{package}.py").exists():
            raise  # a module of ours: a fault of the program
        print_error(
            f"expected the project's environment, found {sys.executable} without {package}; run "
            "`make setup` and use .venv/bin/python3"
        )
        raise SystemExit(FAILURE) from None


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Shortens the import of TensorFlow in the block to about two thirds.

    Packages that only Keras would import are as if they were not installed, until the block ends.
    Nor is garbage looked for: modules are not garbage, and what the block has loaded is left out of
    every later search.
    """
    hidden = [name for name in _UNUSED_BY_US if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import fails as if it were missing
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collecting:
            gc.enable()


@contextlib.contextmanager
def stderr_on_failure() -> Iterator[None]:
    """Holds back what is written to stderr and shows it only if the block raises.

    TensorFlow's libraries announce themselves while they load, in every process, before any log
    level applies.
    """
    sys.stderr.flush()
    stderr = os.dup(_STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)


def allow_many_files() -> None:
    """Raises the limit of open files.

    A checkpoint has one file for each rank that wrote it, streaming data nine for each shard.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def find_horovodrun() -> str:
    """Finds Horovod's launcher on PATH or beside this Python, and returns its path.

    Raises:
        ValueError: It is in neither place.
    """
    own_folder = os.path.dirname(sys.executable)
    found = shutil.which("horovodrun") or shutil.which("horovodrun", path=own_folder)
    if found is None:
        raise ValueError(
            f"expected horovodrun on PATH or in {own_folder}, found none; run `make setup` and use "
            ".venv/bin/python3"
        )
    return found
