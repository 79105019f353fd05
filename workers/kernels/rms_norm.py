"""Root-mean-square normalisation."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Each row of x [..., H] over its root mean square, times weight [H].

    The mean is taken in float32 (Zhang and Sennrich, 2019).
    """
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add delta to residual in place, both [T, H], and return the sum's rms_norm."""
    residual.add_(delta)
    return rms_norm(residual, weight, eps)


def head_norm(heads: torch.Tensor, weights: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm of each head of [T, num_heads, D], each with its row of weights [num_heads, D]."""
    return F.rms_norm(heads, heads.shape[-1:], None, eps).mul_(weights)
