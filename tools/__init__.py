"""Programs that diagnose a machine: `doctor`, `gpu_check`."""
