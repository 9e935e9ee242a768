"""What to write instead of flags of NVIDIA's PyTorch DLRM that have no counterpart of one name."""

from __future__ import annotations

INSTEAD = {
    "base_device": "leave it out: visible GPUs are used; CUDA_VISIBLE_DEVICES= hides them",
    "embedding_type": "leave it out: the tables are one, fused; --embedding says where it lies",
    "hash_indices": "set --bad_ids=modulo",
    "interaction_op": "leave it out for dot, set --custom_interact for cuda_dot or "
    "--interaction=concat for cat",
    "optimized_mlp": "leave it out: there is one implementation; --xla compiles it",
    "output_dir": "set --checkpoint_dir for checkpoints, --run_dir for results",
}


def instead_of(name: str) -> str | None:
    """Returns what to do instead of giving the flag; None if it is not one of those.

    Args:
        name: A name without dashes; a switch may come with `no` before its name.
    """
    return INSTEAD.get(name) or INSTEAD.get(name[len("no") :] if name.startswith("no") else "")
