"""Checks what a GPU host can do: prints one line for each check, in order, and writes them as JSON.

    python3 -m tools.gpu_check                                            one GPU
    horovodrun -np 8 ./hvd_wrapper.sh python3 -m tools.gpu_check          eight
    python3 -m tools.gpu_check --cpu --batch 512                          what needs no GPU

Ends with code 1 if a check failed, or if there is no GPU and --cpu was not given. GPUs add up
samples and rows in another order than CPUs, so results are compared within stated bounds.
"""
