"""One layer of a pre-norm decoder."""

from dataclasses import dataclass

import torch

from workers.kernels.row_kernels import RowKernels
from workers.layers.attention import AttentionPlan
from workers.layers.kv_cache import LayerCache
from workers.layers.mlp import FeedForward
from workers.layers.rotary import Rotation
from workers.layers.self_attention import SelfAttention
from workers.layers.workspace import Workspace
from workers.parallel.group import Group


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Norm, attention, norm, feed-forward.

    What a layer adds to the residual stream is handed on and added by the next norm, so that
    one kernel can do both. Each of its two parts ends with a sum over the ranks that divide it.
    """

    input_norm: torch.Tensor
    """[hidden_size]"""
    attention: SelfAttention
    post_attention_norm: torch.Tensor
    """[hidden_size]"""
    mlp: FeedForward
    eps: float
    rows: RowKernels
    dense: Group
    """The ranks that hold the other parts of this layer."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of it but attention."""
        return self.attention.is_native and self.mlp.is_native

    def __call__(
        self,
        delta: torch.Tensor | None,
        rotation: Rotation,
        cache: LayerCache,
        plan: AttentionPlan,
        workspace: Workspace,
    ) -> torch.Tensor:
        """Take in the layer before, and return what this one adds: workspace.delta.

        Args:
            delta: What the layer before adds to workspace.residual; None in the first layer.
            rotation: Of the rows' positions.
            cache: This layer's keys and values.
            plan: The step's attention plan.
            workspace: Of the step's T rows.
        """
        residual, normed = workspace.residual, workspace.normed
        self.rows.add_rms_norm(residual, delta, self.input_norm, self.eps, normed)
        attended = self.attention(normed, rotation, cache, plan, workspace)
        self.dense.all_reduce(attended)
        self.rows.add_rms_norm(residual, attended, self.post_attention_norm, self.eps, normed)
        added = self.mlp(normed, workspace)
        if not self.mlp.is_whole:
            self.dense.all_reduce(added)
        return added
