"""Rotation of queries and keys by their positions."""

import torch


def rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D/2) of heads [T, num_heads, D] (Su et al., 2021).

    `cos` and `signed_sin` are [T, 1, D]: the halves repeat the same angles, and the sines of
    the first half are negated, so that a roll by D/2 replaces the usual negate and concatenate.
    """
    turned = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * cos).addcmul_(turned, signed_sin)
