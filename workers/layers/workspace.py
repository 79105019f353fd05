"""The activations of a step."""

from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch

from workers.layers.expert_buffers import ExpertBuffers, ExpertShape


class StepShape(Protocol):
    """What a model's configuration must say so that its activations can be laid out."""

    @property
    def hidden_size(self) -> int:
        """Elements of a row between layers."""

    @property
    def intermediate_size(self) -> int:
        """Elements of a row inside the feed-forward part, on this rank."""

    @property
    def num_heads(self) -> int:
        """Query heads of this rank."""

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of this rank."""

    @property
    def head_dim(self) -> int:
        """Elements of one head."""

    @property
    def experts(self) -> ExpertShape | None:
        """None for a model without experts."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Buffers that all layers and all steps share, one row per token.

    They stay where they are, so that a recorded step can be played again; and fresh ones would cost
    page faults in every step.
    """

    residual: torch.Tensor
    """[T, hidden_size]: the stream that layers add to."""
    delta: torch.Tensor
    """[T, hidden_size]: what the last part of a layer adds."""
    normed: torch.Tensor
    """[T, hidden_size]"""
    qkv: torch.Tensor
    """[T, (num_heads + 2 * num_kv_heads) * head_dim]"""
    attended: torch.Tensor
    """[T, num_heads * head_dim]"""
    activated: torch.Tensor
    """[T, intermediate_size]"""
    experts: ExpertBuffers | None
    """None for a model without experts."""

    @classmethod
    def allocate(
        cls, shape: StepShape, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """For steps of up to `num_rows` rows."""

        def buffer(width: int) -> torch.Tensor:
            return torch.empty(num_rows, width, dtype=dtype, device=device)

        queries = shape.num_heads * shape.head_dim
        return cls(
            residual=buffer(shape.hidden_size),
            delta=buffer(shape.hidden_size),
            normed=buffer(shape.hidden_size),
            qkv=buffer(queries + 2 * shape.num_kv_heads * shape.head_dim),
            attended=buffer(queries),
            activated=buffer(shape.intermediate_size),
            experts=None
            if shape.experts is None
            else ExpertBuffers.allocate(shape.experts, shape.hidden_size, num_rows, dtype, device),
        )

    def first(self, num_rows: int) -> Self:
        """The part for a step of that many rows."""
        experts = None if self.experts is None else self.experts.first(num_rows)
        rows = {
            field.name: getattr(self, field.name)[:num_rows]
            for field in fields(self)
            if field.name != "experts"
        }
        return type(self)(**rows, experts=experts)
