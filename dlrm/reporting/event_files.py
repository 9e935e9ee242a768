"""The append-only files of a run: JSON lines of events and TensorBoard's event file.

Knows nothing of training and never imports TensorFlow: TensorBoard's own package is
enough to write its files. Both classes write unbuffered, so what a crash leaves behind
is complete up to the last event, and a full disk is reported by the write that met it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast


def jsonable(value: object) -> object:
    """Turns a value into what strict JSON can hold.

    Args:
        value: anything; mappings and sequences are converted item by item.

    Returns:
        The value itself where JSON knows it, `None` for a float that is not finite, a
        plain number for a NumPy scalar, and the text of anything else.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        return jsonable(cast(Any, value).item())
    return str(value)


class EventLog:
    """Appends events to a file, one JSON object a line.

    A line that an earlier crash left without its end is closed first, so that it can
    spoil nothing but itself.

    Args:
        path: the file; created when missing, its folder must exist.

    Raises:
        OSError: the file cannot be opened, read or written.
    """

    def __init__(self, path: str) -> None:
        # Read access too: the last byte says whether an earlier line was cut short.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if self._file.seek(0, os.SEEK_END) > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                _write_all(self._file, b"\n")

    def write(self, event: str, step: int, fields: Mapping[str, object]) -> None:
        """Appends one event.

        Args:
            event: its kind, such as "step".
            step: completed iterations.
            fields: further keys of the line.

        Raises:
            OSError: the line could not be written whole.
        """
        line = {"event": event, "time": time.time(), "step": step, **fields}
        text = json.dumps(jsonable(line), allow_nan=False)
        _write_all(self._file, text.encode() + b"\n")

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()


class TensorBoardLog:
    """Writes scalars and hyperparameters as one TensorBoard event file.

    Args:
        folder: where the event file goes; created when missing.

    Raises:
        OSError: the folder or the file cannot be written.
    """

    def __init__(self, folder: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(folder, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, so the
        # time comes first, down to what tells two runs of one process apart.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}"
        self._file = open(os.path.join(folder, f"{name}.{os.getpid()}"), "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(_WholeWrites(self._file))
        self._event_type = Event
        self._add(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one point of several curves.

        Args:
            step: completed iterations, the x of the curves.
            values: the y of each curve by its tag.

        Raises:
            OSError: the file could not be written.
        """
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for tag, value in values.items():
            self._add(step=step, summary=scalar_pb(tag, float(value)))

    def start_session(self, settings: Mapping[str, object], metric_tags: Iterable[str]) -> None:
        """Opens this run's row in TensorBoard's table of hyperparameters.

        Args:
            settings: the hyperparameters; what is no bool, number or text is written as text.
            metric_tags: the scalars to show beside them; their last value counts.

        Raises:
            OSError: the file could not be written.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

        hparams = {name: _hparam(value) for name, value in settings.items()}
        types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
        experiment = api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(
                    name=name, type=types.get(type(value), api_pb2.DATA_TYPE_FLOAT64)
                )
                for name, value in hparams.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metric_tags
            ],
        )
        self._add_hparams(
            metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)
        )
        self._add(summary=summary_v2.hparams_pb(hparams))

    def end_session(self, success: bool) -> None:
        """Marks this run's row as finished or failed.

        Args:
            success: whether the run came to its regular end.

        Raises:
            OSError: the file could not be written.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        info = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE,
            end_time_secs=time.time(),
        )
        self._add_hparams(
            metadata.SESSION_END_INFO_TAG,
            plugin_data_pb2.HParamsPluginData(session_end_info=info),
        )

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _add_hparams(self, tag: str, data: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata

        summary = Summary()
        summary.value.add(
            tag=tag,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._add(summary=summary)

    def _add(self, **fields: Any) -> None:
        event = self._event_type(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


class _WholeWrites:
    """Gives TensorBoard's record writer a file whose writes are whole or raise."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        _write_all(self._file, data)


def _write_all(file: Any, data: bytes) -> None:
    # An unbuffered write may be short when the disk fills up; half an event is a failure.
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def _hparam(value: object) -> bool | float | str:
    plain = jsonable(value)
    if isinstance(plain, (bool, int, float, str)):
        return plain
    if isinstance(plain, list):
        return "-".join(str(item) for item in plain)
    return str(value)
