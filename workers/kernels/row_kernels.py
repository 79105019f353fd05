"""Kernels that work on rows of activations."""

from typing import Protocol

import torch
import torch.nn.functional as F

from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.library import Library
from workers.kernels.rms_norm import rms_norm


class RowKernels(Protocol):
    """What a step does to rows outside of matrix products and attention."""

    def embed(
        self,
        token_ids: torch.Tensor,
        table: torch.Tensor,
        out: torch.Tensor,
        first_id: int | None = None,
    ) -> None:
        """out [T, H] = the rows of table [V, H] that int64 token_ids [T] name.

        With `first_id`, the table holds the ids from that one on, and for others the result is
        zeros; without, it holds all of them.
        """

    def add(self, residual: torch.Tensor, delta: torch.Tensor) -> None:
        """Add delta to residual in place, both [T, H]."""

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """Add delta, if any, to residual in place, both [T, H]; out is the sum's rms_norm."""

    def are_finite(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out bool [T]: whether a row of x [T, H] is free of NaN and infinity."""


class TorchRowKernels:
    """The reference, for any device."""

    def embed(
        self,
        token_ids: torch.Tensor,
        table: torch.Tensor,
        out: torch.Tensor,
        first_id: int | None = None,
    ) -> None:
        """See RowKernels."""
        if first_id is None:
            out.copy_(F.embedding(token_ids, table))
            return
        rows = token_ids - first_id
        inside = (rows >= 0) & (rows < len(table))
        embedded = F.embedding(rows.where(inside, 0), table)
        out.copy_(embedded.where(inside.unsqueeze(1), 0))

    def add(self, residual: torch.Tensor, delta: torch.Tensor) -> None:
        """See RowKernels."""
        residual.add_(delta)

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """See RowKernels."""
        if delta is not None:
            residual.add_(delta)
        out.copy_(rms_norm(residual, weight, eps))

    def are_finite(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See RowKernels."""
        out.copy_(x.sum(dim=-1, dtype=torch.float32).isfinite())


def row_kernels(library: Library | None) -> RowKernels:
    """Those of the library, if there is one."""
    return TorchRowKernels() if library is None else CpuRowKernels(library)
