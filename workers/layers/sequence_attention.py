"""Attention of ranks that hold different rows of a batch and different blocks of its KV cache."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.paged_cache import dequantize_heads
from workers.kernels.partial_attention import merge_partials, partial_attention
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape, HeadNorm
from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation
from workers.layers.written_heads import rotate_heads, write_tokens
from workers.parallel.group import Group

_SCORES = 1 << 24
"""Scores held in memory at a time."""


class SequenceParallelAttention:
    """Splits a step's rows and the cache's blocks over the N ranks of a group; exact.

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

    Gathering instead of a ring as in context parallelism of Llama 3 (Dubey et al., 2024); what
    goes around are partial results, as in Flash-Decoding (Dao et al., 2023), and not the keys and
    values of the context as in Ring Attention (Liu et al., 2023), which here stay with their ranks
    from step to step.
    """

    def __init__(self, shape: AttentionShape, group: Group) -> None:
        self._shape = shape
        self._group = group
        self._share = BlockShare(group.rank, group.size)

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend; the metadata is that of the whole batch, on all ranks."""
        rows, slots = self._share.held_rows(metadata.slot_mapping, metadata.block_size)
        pieces = {
            window: [
                _piece(metadata, sequence, window, self._share, device)
                for sequence in range(len(metadata.context_lens))
            ]
            for window in windows
        }
        num_rows = metadata.query_starts[-1]
        return SequenceParallelPlan(self._shape, self._group, num_rows, rows, slots, pieces)


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence's queries, and what this rank holds of the positions that they see."""

    rows: slice
    """Its rows in the batch."""
    query_positions: torch.Tensor
    """int64 [Q]"""
    key_positions: torch.Tensor
    """int64 [L]"""
    slots: torch.Tensor
    """int64 [L]: where these are in this rank's cache."""


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
    held = share.held_positions(metadata.block_tables[sequence], first, end, metadata.block_size)
    return Piece(
        rows,
        torch.arange(start, end, device=device),
        torch.from_numpy(held.positions).to(device),
        torch.from_numpy(held.slots).to(device),
    )


@dataclass(frozen=True, slots=True)
class SequenceParallelPlan:
    """One step's part of one rank."""

    shape: AttentionShape
    group: Group
    num_rows: int
    """Of the whole batch, without padding."""
    written_rows: torch.Tensor
    """int64 [M]: rows whose keys and values this rank holds."""
    written_slots: torch.Tensor
    """int64 [M]: where it puts them."""
    pieces: dict[int | None, list[Piece]]
    """For each sliding window, one for each sequence."""

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
        num_heads, num_kv_heads, head_dim = self.shape
        own_rows, size = qkv.shape[0], self.group.size
        heads = rotate_heads(qkv, self.shape, rotation, head_norm)
        gathered = heads.new_empty(size, *heads.shape)
        self.group.all_gather(heads, gathered)
        query, keys, values = gathered.flatten(0, 1).split_with_sizes(
            (num_heads, num_kv_heads, num_kv_heads), dim=1
        )
        write_tokens(keys[self.written_rows], values[self.written_rows], cache, self.written_slots)
        sent = heads.new_empty(size * own_rows, num_heads, head_dim + 1, dtype=torch.float32)
        self._attend(query, cache, window, scale, sent)
        received = torch.empty_like(sent)
        counts = [own_rows] * size
        self.group.all_to_all(sent, counts, received, counts)
        parts = received.view(size, own_rows, num_heads, head_dim + 1)
        joined = merge_partials(parts[..., :-1], parts[..., -1])
        out.copy_(joined.flatten(1))
        out[max(0, self.num_rows - self.group.rank * own_rows) :] = 0

    def _attend(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Fill out, [T, num_heads, head_dim + 1], the last element being the log-sum-exp."""
        out[self.num_rows :] = 0
        for piece in self.pieces[window]:
            keys = _rows_at(cache.keys, cache.key_scales, piece.slots)
            values = _rows_at(cache.values, cache.value_scales, piece.slots)
            step = max(1, _SCORES // (self.shape.num_heads * max(1, len(piece.slots))))
            for first in range(0, len(piece.query_positions), step):
                rows = slice(
                    piece.rows.start + first, min(piece.rows.start + first + step, piece.rows.stop)
                )
                part = partial_attention(
                    query[rows],
                    piece.query_positions[first : first + step],
                    keys,
                    values,
                    piece.key_positions,
                    window,
                    scale,
                )
                out[rows, :, :-1] = part.out
                out[rows, :, -1] = part.log_sum_exp


def _rows_at(store: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
    """float32 [L, num_kv_heads, head_dim]."""
    rows = store.flatten(0, 1)[slots]
    if scales is None:
        return rows.float()
    return dequantize_heads(rows, scales.flatten(0, 1)[slots], torch.float32)
