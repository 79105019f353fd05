"""Continuous batching over a paged KV cache: requests in, tokens out, one step at a time."""
