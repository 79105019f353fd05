"""The attention part of a decoder layer."""

from dataclasses import dataclass

import torch

from workers.kernels.rms_norm import head_norm
from workers.kernels.rotary import rotate
from workers.layers.attention import AttentionPlan
from workers.layers.linear import Linear
from workers.layers.rotary import Rotation


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norms of single query and key heads."""

    weights: torch.Tensor
    """[num_heads + num_kv_heads, head_dim], query heads first."""
    eps: float


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Projects, rotates, attends over the cache, projects back."""

    qkv: Linear
    """hidden_size to (num_heads + 2 * num_kv_heads) * head_dim: queries, keys, values."""
    output: Linear
    head_norm: HeadNorm | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    """Sliding window in tokens; None sees everything."""

    def __call__(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """[T, hidden_size] to the same; writes this step's keys and values into the cache."""
        num_rotated = self.num_heads + self.num_kv_heads
        heads = self.qkv(x).view(x.shape[0], num_rotated + self.num_kv_heads, self.head_dim)
        rotated, values = heads[:, :num_rotated], heads[:, num_rotated:]
        if self.head_norm is not None:
            rotated = head_norm(rotated, self.head_norm.weights, self.head_norm.eps)
        rotated = rotate(rotated, *rotation)
        attended = plan.forward(
            rotated[:, : self.num_heads],
            rotated[:, self.num_heads :],
            values,
            key_cache,
            value_cache,
            window=self.window,
            scale=self.head_dim**-0.5,
        )
        return self.output(attended.flatten(1))
