"""Writes a folder of streaming data: its shards by several processes, then what describes them.

This module must not know how events are drawn, nor the command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dlrm.formats.json_files import write_json_object
from dlrm_v3.data.layout import (
    BEST,
    METADATA,
    StreamMetadata,
    read_metadata,
    shard_folder,
    write_metadata,
)
from dlrm_v3.generate.best import summary
from dlrm_v3.generate.shards import generate_shard, remove_unfinished, shard_label_counts

_PARENT_CHECK_SECONDS = 0.2


def begin(folder: Path, metadata: StreamMetadata) -> None:
    """Makes the folder, or checks that what is there has the same settings.

    What a run that was killed has left of a shard is removed.

    Raises:
        ValueError: It holds data of other settings, or something else.
    """
    if (folder / METADATA).exists():
        found = read_metadata(folder)
        settings, others = metadata.config.__dict__, found.config.__dict__
        for name, value in settings.items():
            if others[name] != value:
                raise ValueError(
                    f"{folder / METADATA}: {name}: expected {value}, found {others[name]}; "
                    "use the same settings to go on, or another folder"
                )
        remove_unfinished(folder)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: expected an empty folder, or one with {METADATA}, found other files; "
            "use another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_metadata(folder, metadata)


def write_shards(
    folder: Path, metadata: StreamMetadata, shards: Sequence[int], processes: int
) -> Iterator[int]:
    """Writes shards that are not there yet.

    Args:
        folder: The folder, after `begin`.
        metadata: What the data is.
        shards: The numbers of the shards.
        processes: Number of processes.

    Yields:
        The number of each shard as it is complete.

    Raises:
        OSError: A shard cannot be written.
        ValueError: A process was ended from outside.
    """
    missing = [shard for shard in shards if not shard_folder(folder, shard).exists()]
    if processes == 1 or len(missing) <= 1:
        for shard in missing:
            generate_shard(folder, metadata, shard)
            yield shard
        return
    executor = ProcessPoolExecutor(
        min(processes, len(missing)),
        multiprocessing.get_context("spawn"),
        _end_with_parent,
        (os.getpid(),),
    )
    try:
        pending = {
            executor.submit(generate_shard, folder, metadata, shard): shard for shard in missing
        }
        for future in as_completed(pending):
            future.result()
            yield pending[future]
    except BrokenProcessPool:
        raise ValueError(
            f"{folder}: a process that wrote a shard was ended; run the same command again, "
            "finished shards are kept"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def write_best(folder: Path, metadata: StreamMetadata) -> dict[str, Any] | None:
    """Writes `best.json` once all shards are there.

    Returns:
        Its content, or None while a shard is missing.
    """
    shards = range(metadata.config.written_shards)
    if not all(shard_folder(folder, shard).exists() for shard in shards):
        return None
    remove_unfinished(folder)
    counts = [shard_label_counts(folder, metadata, shard) for shard in shards]
    content = summary(counts, metadata.config)
    write_json_object(folder / BEST, content, indent=2)
    return content


def _end_with_parent(parent: int) -> None:
    """Lets a process of the pool end when its parent has ended, and quietly on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
