"""How much the trained model's AUC depends on the seed and on the type that it computes in."""
