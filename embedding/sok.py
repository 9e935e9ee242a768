"""Tables kept by NVIDIA's SparseOperationKit 2.x. The only module that may import it."""

from __future__ import annotations


def require() -> None:
    """Says that this backend is not available.

    Raises:
        ValueError: always, with the remedy.
    """
    raise ValueError(
        "--embedding=sok is not built yet: this version has no SparseOperationKit backend; "
        "use --embedding=alltoall, which runs on CPUs and GPUs"
    )
