"""The ranks: what they exchange, what each computes on, and how all end when one fails."""
