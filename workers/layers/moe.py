"""The feed-forward part of a layer with experts."""

from dataclasses import dataclass

import torch

from workers.layers.expert_buffers import ExpertBuffers
from workers.layers.expert_exchange import ExpertExchange
from workers.layers.expert_placement import SlotTable
from workers.layers.experts import Experts, SharedRows
from workers.layers.linear import Linear, NativeLinear
from workers.layers.router import Router
from workers.layers.workspace import Workspace


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """SwiGLU for every row, times the sigmoid of a gate (Qwen2-MoE)."""

    gated: Linear
    down: Linear
    gate: Linear
    """hidden_size to 1."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of it."""
        layers = (self.gated, self.down, self.gate)
        return all(isinstance(layer, NativeLinear) for layer in layers)

    def __call__(self, x: torch.Tensor, buffers: ExpertBuffers) -> SharedRows:
        """Of x [T, hidden_size] and buffers of T rows, which hold the result."""
        rows = self.down(self.gated(x, buffers.shared_activated), buffers.shared)
        return SharedRows(rows, self.gate(x, buffers.shared_gate))


@dataclass(frozen=True, slots=True)
class SparseMlp:
    """A router, its experts, and how rows get to those of other ranks (Shazeer et al., 2017)."""

    router: Router
    slots: SlotTable
    """By which the router finds experts."""
    experts: Experts
    shared: SharedExpert | None
    exchange: ExpertExchange

    @property
    def is_native(self) -> bool:
        """See FeedForward."""
        has_native_shared = self.shared is None or self.shared.is_native
        parts = (self.router, self.experts, self.exchange)
        return has_native_shared and all(part.is_native for part in parts)

    @property
    def is_whole(self) -> bool:
        """See FeedForward."""
        return self.exchange.is_whole

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        """See FeedForward."""
        buffers = workspace.experts
        assert buffers is not None, "the workspace was laid out for a model without experts"
        shared = None if self.shared is None else self.shared(x, buffers)
        self.exchange(x, self.router, self.experts, shared, buffers, workspace.delta)
        return workspace.delta
