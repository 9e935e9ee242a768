"""TensorBoard's event file of a run: curves and hyperparameters.

Independent of training, and without TensorFlow: TensorBoard's own package suffices to write its
files. Like the event log, they are written unbuffered.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dlrm.reporting.event_log import jsonable, write_all


class TensorBoardLog:
    """Writes scalars and hyperparameters as one TensorBoard event file.

    Args:
        folder: Folder of the event file; created if missing.

    Raises:
        OSError: The folder or the file cannot be written.
    """

    def __init__(self, folder: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(folder, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, so the time comes
        # first, precise enough to distinguish two runs of one process.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}"
        self._file = open(os.path.join(folder, f"{name}.{os.getpid()}"), "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(_WholeWrites(self._file))
        self._event_type = Event
        self._add(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one point of several curves.

        Args:
            step: Number of steps done, the x of the curves.
            values: The y of each curve, by its tag.

        Raises:
            OSError: The file could not be written.
        """
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for tag, value in values.items():
            self._add(step=step, summary=scalar_pb(tag, float(value)))

    def start_session(self, settings: Mapping[str, object], metric_tags: Iterable[str]) -> None:
        """Opens this run's row in TensorBoard's table of hyperparameters.

        Args:
            settings: The hyperparameters. Values other than bools, numbers and text become text.
            metric_tags: Scalars to show next to the hyperparameters, with their last value.

        Raises:
            OSError: The file could not be written.
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
            success: Whether the run came to its regular end.

        Raises:
            OSError: The file could not be written.
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
    """A file for TensorBoard's record writer, whose writes are complete or raise."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        write_all(self._file, data)


def _hparam(value: object) -> bool | float | str:
    plain = jsonable(value)
    if isinstance(plain, (bool, int, float, str)):
        return plain
    if isinstance(plain, list):
        return "-".join(str(item) for item in plain)
    return str(value)
