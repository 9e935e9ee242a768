"""Training steps of this project and of other systems, on one machine and the same batches."""
