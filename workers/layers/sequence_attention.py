"""Attention of ranks that hold different rows of a batch and different blocks of its KV cache."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from workers.kernels.library import Library
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape, HeadNorm
from workers.layers.block_share import BlockShare
from workers.layers.exchange_buffers import ExchangeBuffers
from workers.layers.kv_cache import LayerCache
from workers.layers.native_held_attention import NativeHeldAttention
from workers.layers.rotary import Rotation
from workers.layers.torch_held_attention import TorchHeldAttention
from workers.parallel.group import Group


class HeldAttention(Protocol):
    """What a rank does in one step with the rows and the blocks that it holds.

    A partial result is a row of float32 per query, [num_heads * (head_dim + 1)]: all heads'
    results, each a softmax over the rank's blocks alone times their values, then the heads'
    log-sum-exps.
    """

    def rotate(
        self, qkv: torch.Tensor, rotation: Rotation, head_norm: HeadNorm | None
    ) -> torch.Tensor:
        """qkv with queries and keys normalised and rotated; it may be overwritten."""

    def write(self, heads: torch.Tensor, cache: LayerCache) -> None:
        """Put keys and values that belong into the rank's blocks there.

        `heads` are those of all rows of the batch, [T, num_heads + 2 * num_kv_heads, head_dim].
        """

    def attend(
        self,
        heads: torch.Tensor,
        cache: LayerCache,
        *,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Fill out with the partial results of all rows; zeros in padding rows."""

    def merge(self, parts: torch.Tensor, out: torch.Tensor) -> None:
        """Join partial results [N, R, ...] of N ranks into out [R, num_heads * head_dim]."""


class SequenceParallelAttention:
    """Splits a step's rows and the cache's blocks over the N ranks of a group.

    The result is that of one rank, up to rounding.

    Rank r computes rows r * T / N up to (r + 1) * T / N of the batch, and holds the blocks of
    BlockShare(r, N). In each layer

    1. every rank normalises and rotates the heads of its rows, and all gather all of them;
    2. it writes the keys and values that belong into its own blocks;
    3. it attends with all queries of the step over its own blocks, wherever in the sequence these
       stand, which gives partial results with their log-sum-exps in float32;
    4. ranks exchange these, and each joins those of its own rows.

    A prompt's rows are thus divided, and so is reading the cache when one token is decoded. With A
    bytes of a row of queries, keys and values and H heads of D elements, a rank receives
    (N - 1) / N * T * A bytes in step 1, and (N - 1) / N * T * H * (D + 1) * 4 in step 4; nothing
    grows with the context.

    Heads are gathered at once, and not passed around in a ring, as in the context parallelism of
    Llama 3 (Grattafiori et al., 2024). But it is partial results that are exchanged, joined as in
    Flash-Decoding (Dao et al., 2023): keys and values of the context, which Ring Attention (Liu et
    al., 2023) sends around, stay where they are from step to step.
    """

    def __init__(self, shape: AttentionShape, group: Group, library: Library | None) -> None:
        """On the CPU kernels of a library, or in plain torch without."""
        self._shape = shape
        self._group = group
        self._share = BlockShare(group.rank, group.size)
        self._native = None if library is None else NativeHeldAttention(shape, self._share, library)
        self._buffers = ExchangeBuffers(shape, group.size)

    @property
    def is_native(self) -> bool:
        """See AttentionBackend."""
        return self._native is not None

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend; the metadata is that of the whole batch, on all ranks."""
        held: HeldAttention
        if self._native is not None:
            self._native.set(metadata)
            held = self._native
        else:
            held = TorchHeldAttention.plan(metadata, windows, self._shape, self._share, device)
        return SequenceParallelPlan(self._group, held, self._buffers)


@dataclass(frozen=True, slots=True)
class SequenceParallelPlan:
    """One step's part of one rank."""

    group: Group
    held: HeldAttention
    buffers: ExchangeBuffers

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
        """See AttentionPlan; qkv, rotation and out are of this rank's rows."""
        num_rows = qkv.shape[0]
        buffers = self.buffers.first(num_rows, qkv.dtype, qkv.device)
        own = self.held.rotate(qkv, rotation, head_norm)
        self.group.all_gather(own, buffers.heads)
        heads = buffers.heads.view(-1, *qkv.shape[1:])
        self.held.write(heads, cache)
        self.held.attend(heads, cache, window=window, scale=scale, out=buffers.sent)
        counts = [num_rows] * self.group.size
        self.group.all_to_all(buffers.sent, counts, buffers.received, counts)
        self.held.merge(buffers.received.view(self.group.size, num_rows, -1), out)
