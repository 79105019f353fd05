"""Rotation of queries and keys by their positions."""

import torch


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D/2) of heads [T, num_heads, D] (Su et al., 2021).

    `cos` and `sin` are [T, 1, D/2].
    """
    first, second = heads.chunk(2, dim=-1)
    return torch.cat(
        (
            (first * cos).addcmul_(second, sin, value=-1),
            (second * cos).addcmul_(first, sin),
        ),
        dim=-1,
    )
