"""The output of a job: passed on line by line, and searched for what says how the job ended.

Relies on the form of horovodrun's lines, and on `error: ` at the beginning of a rank's errors.
"""

from __future__ import annotations

import os
import re
from typing import IO

MAX_ERRORS = 20  # to remember of an attempt
# horovodrun begins each line of a rank like this, also after a carriage return.
RANK_PREFIX = re.compile(rb"^\[(\d+)\]<std(?:out|err)>:")
RANK_ENDED = re.compile(rb"Process \d+ exit with status code (\d+)\.")
# horovodrun loads TensorFlow, which announces itself like this whatever the log level.
NOTICE = re.compile(
    rb"(?:I0000 |WARNING: All log messages before absl::|To enable the following instructions: )"
)
LINE_END = re.compile(rb"(?<=[\r\n])")


class JobOutput:
    """Passes on what a job writes, rank 0's lines without horovodrun's prefix.

    TensorFlow's notices from horovodrun itself are dropped.

    Attributes:
        errors: The distinct lines of any rank that begin with `error: `, without the prefix.
        code: The exit code of the first rank that failed, according to horovodrun; None before.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.code: int | None = None

    def forward(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Passes on each line as it comes, until the end of `source`.

        Args:
            source: The pipe that the job writes to.
            target: Where the lines go.
        """
        incomplete = b""
        while piece := os.read(source.fileno(), 1 << 16):
            *lines, incomplete = LINE_END.split(incomplete + piece)
            target = write(target, b"".join(map(self._examine, lines)))
        write(target, self._examine(incomplete))

    def _examine(self, line: bytes) -> bytes:
        """Notes what a line says of the job's end; returns what of it is to be passed on."""
        prefix = RANK_PREFIX.match(line)
        if not prefix and NOTICE.match(line):
            return b""
        text = line[prefix.end() :] if prefix else line
        if text.startswith(b"error: "):
            error = text.decode(errors="replace").rstrip()
            if error not in self.errors and len(self.errors) < MAX_ERRORS:
                self.errors = [*self.errors, error]
        ended = RANK_ENDED.search(text)
        if ended and not prefix and self.code is None:
            self.code = int(ended[1])
        return text if prefix and int(prefix[1]) == 0 else line


def write(target: IO[bytes], data: bytes) -> IO[bytes]:
    """Writes and flushes; returns the next target, /dev/null once the reader has gone."""
    try:
        target.write(data)
        target.flush()
    except OSError:  # the job must not wait for a reader that has gone
        return open(os.devnull, "wb")  # noqa: SIM115 - until the process ends
    return target
