"""Asks the fused interaction which devices it has a kernel for."""

from __future__ import annotations

import interact_op
from tools.probes.answer import kernel_devices, print_answer

if __name__ == "__main__":
    interact_op.load()
    print_answer(kernel_devices("DotInteract"))
