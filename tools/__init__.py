"""Programs around the product: `doctor` and `gpu_check` diagnose a machine, `flags` writes docs."""
