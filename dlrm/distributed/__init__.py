"""The ranks: what they exchange, what each computes on, and how one that is lost ends all."""
