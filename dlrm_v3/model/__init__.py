"""The HSTU model: from embedding vectors of jagged sequences to logits of their candidates."""
