"""The activations of layers with experts."""

from dataclasses import dataclass, fields
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The sizes of a model's sparse layers that its activations depend on."""

    num_experts: int
    experts_per_token: int
    shared_intermediate_size: int
    """Of the shared expert, on this rank; 0 without one."""


@dataclass(frozen=True, slots=True)
class ExpertBuffers:
    """What sparse layers need beside a Workspace's other buffers, one row per token."""

    logits: torch.Tensor
    """float32 [T, num_experts]"""
    slots: torch.Tensor
    """int32 [T, experts_per_token]"""
    weights: torch.Tensor
    """float32 [T, experts_per_token]"""
    shared_activated: torch.Tensor
    """[T, shared_intermediate_size]"""
    shared: torch.Tensor
    """[T, hidden_size]; [T, 0] without a shared expert."""
    shared_gate: torch.Tensor
    """float32 [T, 1]"""

    @classmethod
    def allocate(
        cls,
        shape: ExpertShape,
        hidden_size: int,
        num_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """For steps of up to `num_rows` rows."""

        def buffer(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(num_rows, width, dtype=dtype, device=device)

        return cls(
            logits=buffer(shape.num_experts, torch.float32),
            slots=buffer(shape.experts_per_token, torch.int32),
            weights=buffer(shape.experts_per_token, torch.float32),
            shared_activated=buffer(shape.shared_intermediate_size, dtype),
            shared=buffer(hidden_size if shape.shared_intermediate_size else 0, dtype),
            shared_gate=buffer(1, torch.float32),
        )

    def first(self, num_rows: int) -> Self:
        """The part for that many rows."""
        return type(self)(*(getattr(self, field.name)[:num_rows] for field in fields(self)))
