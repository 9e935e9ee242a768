"""What launch passes on of a job's output, and what it notes of its end."""

from __future__ import annotations

import io
import os

from launch.output import JobOutput


def forwarded(output: JobOutput, *pieces: bytes) -> bytes:
    """What comes out for what horovodrun writes."""
    target = io.BytesIO()
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb", buffering=0) as end:
        for piece in pieces:
            end.write(piece)
        end.close()
        output.forward(source, target)
    return target.getvalue()


def test_only_rank_0_is_printed_without_its_prefix() -> None:
    lines = b"[0]<stdout>:a\r[0]<stdout>:b\n[3]<stderr>:c\n[10]<stdout>:d\nhorovodrun's own\n"
    expected = b"a\rb\n[3]<stderr>:c\n[10]<stdout>:d\nhorovodrun's own\n"
    assert forwarded(JobOutput(), lines) == expected


def test_only_notices_of_horovodrun_itself_are_dropped() -> None:
    notice = b"I0000 00:00:1 port.cc:153] oneDNN custom operations are on.\n"
    lines = [notice, b"[1]<stderr>:" + notice, b"Process 0 exit with status code 0.\n"]
    assert forwarded(JobOutput(), b"".join(lines)) == b"".join(lines[1:])


def test_a_last_line_without_an_end_is_printed() -> None:
    assert forwarded(JobOutput(), b"[0]<stderr>:no ", b"end") == b"no end"


def test_errors_are_noted_once_whichever_rank_reports_them() -> None:
    output = JobOutput()
    forwarded(output, b"[0]<stderr>:error: a\n[1]<stderr>:error: a\n[2]<stderr>:error: b\n")
    assert output.errors == ["error: a", "error: b"]


def test_the_first_rank_to_fail_decides_the_code() -> None:
    output = JobOutput()
    told_by_a_rank = b"[0]<stdout>:Process 9 exit with status code 9.\n"
    forwarded(output, told_by_a_rank, b"Process 1 exit with status code 75.\n")
    forwarded(output, b"Process 0 exit with status code 143.\n")
    assert output.code == 75


def test_a_reader_that_has_gone_does_not_stop_the_job() -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb", buffering=0) as end:
        end.write(b"[1]<stderr>:error: a\n")
        end.close()
        output = JobOutput()
        output.forward(source, Closed())
    assert output.errors == ["error: a"]
