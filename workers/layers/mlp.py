"""The feed-forward part of a decoder layer."""

from dataclasses import dataclass
from typing import Protocol

import torch

from workers.layers.linear import Linear, NativeLinear
from workers.layers.workspace import Workspace


class FeedForward(Protocol):
    """What a decoder layer does to each row by itself."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of it."""

    @property
    def is_whole(self) -> bool:
        """Whether it returns the result, and not this rank's summand of it."""

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        """[T, hidden_size] to workspace.delta: this rank's summand of the result."""


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    gated: Linear
    """silu(gate(x)) * up(x): hidden_size to intermediate_size."""
    down: Linear
    is_whole = False

    @property
    def is_native(self) -> bool:
        """See FeedForward."""
        return isinstance(self.gated, NativeLinear) and isinstance(self.down, NativeLinear)

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        """See FeedForward."""
        return self.down(self.gated(x, workspace.activated), workspace.delta)
