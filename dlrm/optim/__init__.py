"""Learning-rate schedule and optimizers of the tables and of the dense layers."""
