"""The feed-forward part of a decoder layer."""

from dataclasses import dataclass

import torch

from workers.layers.linear import Linear
from workers.layers.workspace import Workspace


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    gated: Linear
    """silu(gate(x)) * up(x): hidden_size to intermediate_size."""
    down: Linear

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        """[T, hidden_size] to workspace.delta."""
        return self.down(self.gated(x, workspace.activated), workspace.delta)
