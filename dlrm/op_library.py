"""Loads the project's own TensorFlow operations; a library is built for one version of TensorFlow.

Whatever the operations compute is no concern of this module.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any, Callable, TypeVar

import tensorflow as tf

Loaded = TypeVar("Loaded")
_LOADING = threading.RLock()


def once(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Makes a function that loads operations do so once for the same arguments.

    That holds for threads that call it at the same time, too: `functools.cache` alone would let
    both load, and TensorFlow refuses the second gradient of an operation.
    """
    cached = functools.cache(load)

    @functools.wraps(load)
    def locked(*arguments: Any, **options: Any) -> Loaded:
        with _LOADING:
            return cached(*arguments, **options)

    return locked


def load_operations(what: str, build: Path, library: str, remedy: str) -> Any:
    """Loads a library of operations that was built for this TensorFlow.

    Args:
        what: What the operations are, for the message.
        build: The folder of the builds, with a subfolder for each version of TensorFlow.
        library: The name of the file in that subfolder.
        remedy: What to do if it is missing, for the message.

    Returns:
        The module with a function for each operation.

    Raises:
        OSError: It is not built, or built for another TensorFlow only, or damaged.
    """
    path = build / f"tensorflow-{tf.__version__}" / library
    if not path.exists():
        others = sorted(found.parent.name for found in build.glob(f"tensorflow-*/{library}"))
        found = f"built for {', '.join(others)} only" if others else "not built"
        raise OSError(f"{what} for TensorFlow {tf.__version__}: {found}; {remedy}")
    try:
        return tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        raise OSError(
            f"{path}: TensorFlow {tf.__version__} cannot load it "
            f"({error.message.splitlines()[0]}); remove it, then {remedy}"
        ) from error
