"""Weights of 8 and 4 bits: what they mean, how they are made and how checkpoints store them."""
