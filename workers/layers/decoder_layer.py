"""One layer of a pre-norm decoder."""

from dataclasses import dataclass

import torch

from workers.kernels.rms_norm import add_rms_norm
from workers.layers.attention import AttentionPlan
from workers.layers.kv_cache import LayerCache
from workers.layers.mlp import GatedMlp
from workers.layers.rotary import Rotation
from workers.layers.self_attention import SelfAttention


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Norm, attention, norm, feed-forward.

    What a layer adds to the residual stream is handed on and added by the next norm, so that
    one kernel can do both.
    """

    input_norm: torch.Tensor
    """[hidden_size]"""
    attention: SelfAttention
    post_attention_norm: torch.Tensor
    """[hidden_size]"""
    mlp: GatedMlp
    eps: float

    def __call__(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor,
        rotation: Rotation,
        cache: LayerCache,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Take in the layer before, and return what this one adds.

        Args:
            residual: [T, hidden_size], changed in place; lacks `delta` yet.
            delta: What the layer before adds.
            rotation: Of the rows' positions.
            cache: This layer's keys and values.
            plan: The step's attention plan.
        """
        normed = add_rms_norm(residual, delta, self.input_norm, self.eps)
        attended = self.attention(normed, rotation, cache, plan)
        normed = add_rms_norm(residual, attended, self.post_attention_norm, self.eps)
        return self.mlp(normed)
