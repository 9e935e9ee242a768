"""Creates the environments, builds Horovod and SparseOperationKit, and packs bundles."""
