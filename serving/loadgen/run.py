"""One test: LoadGen in a thread of its own, its callbacks, and how a test ends.

LoadGen cannot be asked to stop, and an exception in one of its callbacks ends the process without a
word. So callbacks hand their errors to the main thread, which reports them and ends the process;
the summary of a test that did not finish is never written.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn

from dlrm import cli
from serving.loadgen.settings import import_loadgen
from serving.loadgen.system import Answer, Inputs, Library, ScoringSystem, Work

Complete = Callable[[Sequence[Answer]], None]
Failed = Callable[[BaseException], None]


class _Ending:
    """Whether a test ended, and with which error; set by other threads."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Records the first error and wakes the main thread."""
        self.error = self.error or error
        self.ended.set()

    def guard(self, action: Callable[..., None]) -> Callable[..., None]:
        """Makes a callback that raises nothing: after an error it does not return either."""

        def call(*arguments: Any) -> None:
            try:
                action(*arguments)
            # LoadGen's C++ would end the process on any exception, without naming it.
            except BaseException as error:
                self.fail(error)
                threading.Event().wait()  # until the main thread ends the process

        return call


def run_test(
    settings: Any,
    library: Library[Inputs],
    start: Callable[[Complete, Failed], ScoringSystem[Inputs]],
    output: Path,
    *,
    order: Iterator[int] | None = None,
    audit: Path | None = None,
) -> Work:
    """Runs a test. After an error, or Ctrl-C, it prints why and ends the process.

    Args:
        settings: LoadGen's `TestSettings`.
        library: The samples.
        start: Starts the system under test, with what takes its answers and its error.
        output: The folder of LoadGen's logs; it exists.
        order: The samples of the queries to come; None for those that LoadGen names.
        audit: LoadGen's audit.config, of MLPerf's compliance tests.

    Returns:
        What was scored.
    """
    lg = import_loadgen()
    ending = _Ending()

    def complete(answers: Sequence[Answer]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(*answer) for answer in answers])

    system = start(complete, ending.fail)
    # The fast one hands over numbers: Offline's millions of samples come at once.
    sut = lg.ConstructFastSUT(
        ending.guard(lambda ids, samples: system.issue(ids, order or samples)), lambda: None
    )
    samples = len(library.sizes)
    in_memory = min(samples, settings.performance_sample_count_override)
    qsl = lg.ConstructQSL(
        samples, in_memory, ending.guard(library.load), ending.guard(library.unload)
    )
    logs = lg.LogSettings()
    logs.log_output.outdir = os.fspath(output)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False

    def test() -> None:
        try:
            lg.StartTestWithLogSettings(
                sut, qsl, settings, logs, "" if audit is None else os.fspath(audit)
            )
        except BaseException as error:
            ending.fail(error)
        ending.ended.set()

    thread = threading.Thread(target=test, name="loadgen", daemon=True)
    try:
        thread.start()
        ending.ended.wait()
    except KeyboardInterrupt:
        print("interrupted; LoadGen wrote no summary", file=sys.stderr, flush=True)
        _end_process(cli.INTERRUPTED)
    if ending.error is not None:
        _report(ending.error)
        _end_process(cli.FAILURE)
    thread.join()
    work = system.close()
    lg.DestroyQSL(qsl)
    lg.DestroyFastSUT(sut)
    return work


def _report(error: BaseException) -> None:
    """Prints an error: one line if it is for the user, all of it if the program is at fault."""
    if isinstance(error, (ValueError, OSError)):
        cli.print_error(error)
    else:
        traceback.print_exception(type(error), error, error.__traceback__)


def _end_process(code: int) -> NoReturn:
    """Ends the process while LoadGen's threads run, which the interpreter's own end would not."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
