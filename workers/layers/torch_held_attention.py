"""Attention over the blocks that a sequence rank holds, in plain torch."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.paged_cache import dequantize_heads
from workers.kernels.partial_attention import merge_partials, partial_attention
from workers.layers.attention import AttentionMetadata, AttentionShape, HeadNorm
from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation
from workers.layers.written_heads import rotate_heads, write_tokens

_SCORES = 1 << 24
"""Scores held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence's queries, and what a rank holds of the positions that they see."""

    rows: slice
    """Its rows in the batch."""
    query_positions: torch.Tensor
    """int64 [Q]"""
    key_positions: torch.Tensor
    """int64 [L]"""
    slots: torch.Tensor
    """int64 [L]: where these are in the rank's cache."""


@dataclass(frozen=True, slots=True)
class TorchHeldAttention:
    """One step, sequence by sequence, with all arithmetic in float32; see HeldAttention."""

    shape: AttentionShape
    num_rows: int
    """Of the whole batch, without padding."""
    written_rows: torch.Tensor
    """int64 [M]: rows whose keys and values the rank holds."""
    written_slots: torch.Tensor
    """int64 [M]: where it puts them."""
    pieces: dict[int | None, list[Piece]]
    """For each sliding window, one for each sequence."""

    @classmethod
    def plan(
        cls,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        shape: AttentionShape,
        share: BlockShare,
        device: torch.device,
    ) -> "TorchHeldAttention":
        """Work out what all layers share."""
        slots = share.held_slots(metadata.slot_mapping, metadata.block_size)
        (rows,) = (slots >= 0).nonzero(as_tuple=True)
        sequences = range(len(metadata.context_lens))
        pieces = {
            window: [_piece(metadata, sequence, window, share, device) for sequence in sequences]
            for window in windows
        }
        return cls(shape, metadata.query_starts[-1], rows, slots[rows], pieces)

    def rotate(
        self, qkv: torch.Tensor, rotation: Rotation, head_norm: HeadNorm | None
    ) -> torch.Tensor:
        """See HeldAttention."""
        return rotate_heads(qkv, self.shape, rotation, head_norm)

    def write(self, heads: torch.Tensor, cache: LayerCache) -> None:
        """See HeldAttention."""
        _, keys, values = heads[self.written_rows].split_with_sizes(
            (self.shape.num_heads, self.shape.num_kv_heads, self.shape.num_kv_heads), dim=1
        )
        write_tokens(keys, values, cache, self.written_slots)

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
        num_heads = self.shape.num_heads
        results, log_sum_exps = _results(out, self.shape), out[:, -num_heads:]
        out[self.num_rows :] = 0
        for piece in self.pieces[window]:
            keys = _rows_at(cache.keys, cache.key_scales, piece.slots)
            values = _rows_at(cache.values, cache.value_scales, piece.slots)
            step = max(1, _SCORES // (num_heads * max(1, len(piece.slots))))
            for first in range(piece.rows.start, piece.rows.stop, step):
                rows = slice(first, min(first + step, piece.rows.stop))
                offset = first - piece.rows.start
                part = partial_attention(
                    heads[rows, :num_heads],
                    piece.query_positions[offset : offset + step],
                    keys,
                    values,
                    piece.key_positions,
                    window,
                    scale,
                )
                results[rows] = part.out
                log_sum_exps[rows] = part.log_sum_exp

    def merge(self, parts: torch.Tensor, out: torch.Tensor) -> None:
        """See HeldAttention."""
        joined = merge_partials(_results(parts, self.shape), parts[..., -self.shape.num_heads :])
        out.copy_(joined.flatten(1))


def _results(partials: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """[..., num_heads, head_dim] of rows of partial results."""
    heads = partials[..., : -shape.num_heads]
    return heads.view(*heads.shape[:-1], shape.num_heads, shape.head_dim)


def _rows_at(store: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
    """float32 [L, num_kv_heads, head_dim]."""
    rows = store.flatten(0, 1)[slots]
    if scales is None:
        return rows.float()
    return dequantize_heads(rows, scales.flatten(0, 1)[slots], torch.float32)


def _piece(
    metadata: AttentionMetadata,
    sequence: int,
    window: int | None,
    share: BlockShare,
    device: torch.device,
) -> Piece:
    rows = slice(metadata.query_starts[sequence], metadata.query_starts[sequence + 1])
    end = metadata.context_lens[sequence]
    start = end - (rows.stop - rows.start)
    first = 0 if window is None else max(0, start - window + 1)
    held = share.held_blocks(metadata.block_tables[sequence])
    positions, slots = held.positions(first, end, metadata.block_size)
    return Piece(
        rows,
        torch.arange(start, end, device=device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(slots).to(device),
    )
