"""The seam between a model and the attention kernels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from workers.kernels.cpu_batch import Ids
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation


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
    block_tables: Sequence[Ids]
    """S tables of block ids in order of position. Blocks that lie wholly before every sliding
    window may be 0, the null block."""
    slot_mapping: torch.Tensor
    """int64 [query_starts[-1]]: block id * block_size + offset for each row's key and value."""
    block_size: int
    """Tokens of one block."""


class HeadNorm(NamedTuple):
    """RMS norms of single query and key heads."""

    weights: torch.Tensor
    """[num_heads + num_kv_heads, head_dim], query heads first."""
    eps: float


class AttentionPlan(Protocol):
    """What a backend worked out once for a step; every layer uses it.

    Valid until its backend prepares the next one.
    """

    def forward(
        self,
        qkv: torch.Tensor,
        rotation: Rotation,
        head_norm: HeadNorm | None,
        cache: LayerCache,
        *,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Normalise and rotate heads, write keys and values into the cache, attend causally.

        Args:
            qkv: [T, num_heads + 2 * num_kv_heads, head_dim], queries, keys, values; may be
                overwritten. num_heads is a multiple of num_kv_heads.
            rotation: Of the rows' positions.
            head_norm: Applied to queries and keys before rotation; None for no norm.
            cache: Of this layer.
            window: Each query sees this many latest positions, its own included; None for all.
                One of the windows the plan was made for.
            scale: Factor on the dot products.
            out: [T, num_heads * head_dim], filled; zeros in padding rows.
        """


class AttentionShape(NamedTuple):
    """A model's heads, of which a backend is made."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class AttentionBackend(Protocol):
    """A way to compute attention over the paged cache."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of it."""

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
