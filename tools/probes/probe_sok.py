"""Asks SparseOperationKit for its operations, and which devices each has a kernel for."""

from __future__ import annotations

from dlrm.embedding.sok_storage import operations
from tools.probes.answer import kernel_devices, print_answer

if __name__ == "__main__":
    print_answer({operation: kernel_devices(operation) for operation in operations()})
