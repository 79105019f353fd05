"""Attention over the blocks that a sequence rank holds, on the CPU kernels."""

from collections.abc import Sequence

import numpy as np
import torch

from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.cpu_partial_attention import CpuPartialAttention
from workers.kernels.library import Library
from workers.layers.attention import AttentionMetadata, AttentionShape, HeadNorm
from workers.layers.block_share import BlockShare, HeldBlocks, IntArray
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation


class NativeHeldAttention:
    """Reads keys and values where they lie; see HeldAttention.

    All steps share one batch in memory that does not move: recorded calls can be played with
    whatever batch was set last, as long as it is padded to the same number of rows.
    """

    def __init__(self, shape: AttentionShape, share: BlockShare, library: Library) -> None:
        self._kernels = CpuPartialAttention(library, *shape)
        self._share = share
        self._batch = CpuBatch()
        self._known: list[tuple[IntArray, HeldBlocks]] = []

    def set(self, metadata: AttentionMetadata) -> None:
        """Take a step's whole batch."""
        held = [self._held(row, table) for row, table in enumerate(metadata.block_tables)]
        self._batch.set(
            self._share.held_slots(metadata.slot_mapping, metadata.block_size),
            metadata.query_starts,
            metadata.context_lens,
            [blocks.local for blocks in held],
            [blocks.places for blocks in held],
        )

    def _held(self, row: int, table: Sequence[int] | IntArray) -> HeldBlocks:
        # From step to step, few tables change.
        if row < len(self._known) and np.array_equal(self._known[row][0], table):
            return self._known[row][1]
        held = self._share.held_blocks(table)
        self._known[row : row + 1] = [(np.array(table), held)]
        return held

    def rotate(
        self, qkv: torch.Tensor, rotation: Rotation, head_norm: HeadNorm | None
    ) -> torch.Tensor:
        """See HeldAttention."""
        weights, eps = (None, 0.0) if head_norm is None else head_norm
        positions, table = rotation
        self._kernels.rotate_heads(qkv, positions, table, weights, eps)
        return qkv

    def write(self, heads: torch.Tensor, cache: LayerCache) -> None:
        """See HeldAttention."""
        self._kernels.write_tokens(self._batch, heads, *cache)

    def attend(
        self,
        heads: torch.Tensor,
        cache: LayerCache,
        *,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """See HeldAttention."""
        self._kernels.attend(self._batch, heads, *cache, window=window, scale=scale, out=out)

    def merge(self, parts: torch.Tensor, out: torch.Tensor) -> None:
        """See HeldAttention."""
        self._kernels.merge(parts, out)
