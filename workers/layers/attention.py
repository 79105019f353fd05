"""The seam between a model and the attention kernels."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the rows of one step's flat batch stand in their sequences and in the cache.

    S sequences share a batch of T rows. The rows past `query_starts[-1]` are padding.
    """

    query_starts: list[int]
    """S + 1 row offsets; sequence s owns rows query_starts[s] up to query_starts[s + 1]."""
    context_lens: list[int]
    """S lengths in tokens with this step's included: the queries of sequence s stand at its
    last positions."""
    block_tables: list[list[int]]
    """S lists of block ids in order of position. Blocks that lie wholly before every sliding
    window may be 0, the null block."""
    slot_mapping: torch.Tensor
    """int64 [query_starts[-1]]: block id * block_size + offset for each row's key and value."""
    block_size: int
    """Tokens of one block."""


class AttentionPlan(Protocol):
    """What a backend worked out once for a step; every layer uses it."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        window: int | None,
        scale: float,
    ) -> torch.Tensor:
        """Write this step's keys and values into the cache, then attend causally.

        Args:
            query: [T, num_heads, head_dim].
            key: [T, num_kv_heads, head_dim]; num_heads is a multiple of num_kv_heads.
            value: Like key.
            key_cache: [num_blocks, block_size, num_kv_heads, head_dim] of this layer.
            value_cache: Like key_cache.
            window: Each query sees this many latest positions, its own included; None for all.
                One of the windows the plan was made for.
            scale: Factor on the dot products.

        Returns:
            [T, num_heads, head_dim]; zeros in padding rows.
        """


class AttentionShape(NamedTuple):
    """A model's heads, of which a backend is made."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class AttentionBackend(Protocol):
    """A way to compute attention over the paged cache."""

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """Work out for one step all that its layers share.

        Args:
            metadata: The step's batch.
            windows: The distinct sliding windows of the model's layers.
            dtype: Of queries, keys and values.
            device: Where the layers run.
        """
