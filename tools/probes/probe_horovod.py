"""Asks Horovod which of NCCL, Gloo and MPI it was built with."""

from __future__ import annotations

from dlrm.distributed.collective import exchanges
from tools.probes.answer import print_answer

if __name__ == "__main__":
    print_answer(exchanges())
