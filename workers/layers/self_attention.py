"""The attention part of a decoder layer."""

from dataclasses import dataclass

import torch

from workers.layers.attention import AttentionPlan, HeadNorm
from workers.layers.kv_cache import LayerCache
from workers.layers.linear import Linear, NativeLinear
from workers.layers.rotary import Rotation
from workers.layers.workspace import Workspace


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

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do the projections."""
        return isinstance(self.qkv, NativeLinear) and isinstance(self.output, NativeLinear)

    def __call__(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        cache: LayerCache,
        plan: AttentionPlan,
        workspace: Workspace,
    ) -> torch.Tensor:
        """[T, hidden_size] to workspace.delta: this rank's summand of the result.

        Writes the step's keys and values to the cache.
        """
        qkv = self.qkv(x, workspace.qkv)
        plan.forward(
            qkv.view(x.shape[0], -1, self.head_dim),
            rotation,
            self.head_norm,
            cache,
            window=self.window,
            scale=self.head_dim**-0.5,
            out=workspace.attended,
        )
        return self.output(workspace.attended, workspace.delta)
