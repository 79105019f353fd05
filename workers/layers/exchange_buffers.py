"""Memory for what sequence ranks send each other."""

from typing import NamedTuple

import torch

from workers.layers.attention import AttentionShape


class Exchanged(NamedTuple):
    """What goes between N ranks in a layer, with R rows on each."""

    heads: torch.Tensor
    """[N, R, num_heads + 2 * num_kv_heads, head_dim]: gathered from all ranks."""
    sent: torch.Tensor
    """float32 [N * R, num_heads * (head_dim + 1)]: partial results for all rows."""
    received: torch.Tensor
    """Like sent: all ranks' partial results for this rank's rows."""


class ExchangeBuffers:
    """The same memory for all layers and steps, so that recorded steps can be played again."""

    def __init__(self, shape: AttentionShape, num_ranks: int) -> None:
        self._shape = shape
        self._num_ranks = num_ranks
        self._max_rows = 0
        self._heads = torch.empty(0)
        self._sent = torch.empty(0)
        self._received = torch.empty(0)

    def first(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> Exchanged:
        """For steps with `num_rows` rows on each rank."""
        num_heads, num_kv_heads, head_dim = self._shape
        all_heads, width = num_heads + 2 * num_kv_heads, num_heads * (head_dim + 1)
        if num_rows > self._max_rows:
            self._max_rows = max(num_rows, 2 * self._max_rows)
            rows = self._num_ranks * self._max_rows
            self._heads = torch.empty(rows, all_heads, head_dim, dtype=dtype, device=device)
            self._sent = torch.empty(rows, width, device=device)
            self._received = torch.empty(rows, width, device=device)
        rows = self._num_ranks * num_rows
        return Exchanged(
            self._heads[:rows].view(self._num_ranks, num_rows, all_heads, head_dim),
            self._sent[:rows],
            self._received[:rows],
        )
