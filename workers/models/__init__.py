"""Decoder-only language models in Hugging Face format: configuration, weights, forward pass."""
