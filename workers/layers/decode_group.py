"""Sequences with one query each, attended together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.kernels.attention_sdpa import attend_decodes
from workers.layers.attention import AttentionMetadata
from workers.layers.gather_buffers import GatherBuffers
from workers.layers.kv_cache import LayerCache

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """N sequences of similar length, padded to the same number of blocks."""

    rows: torch.Tensor
    """int64 [N]: their rows in the batch."""
    block_ids: torch.Tensor
    """int64 [N * blocks]; the null block where a sequence is shorter."""
    mask: torch.Tensor
    """[N, 1, 1, L]: 0 where visible, else -infinity."""

    def attend(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        buffers: GatherBuffers,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Fill this group's rows of output, both [T, num_heads, head_dim]."""
        size = self.rows.shape[0]
        keys, values = buffers.gather(cache, self.block_ids, query.dtype)
        attended = attend_decodes(
            query.index_select(0, self.rows),
            keys.view(size, -1, *keys.shape[1:]),
            values.view(size, -1, *values.shape[1:]),
            self.mask,
            scale,
        )
        output.index_copy_(0, self.rows, attended.reshape(size, *output.shape[1:]))


def decode_groups(
    metadata: AttentionMetadata,
    sequences: list[int],
    window: int | None,
    tokens_per_group: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[DecodeGroup]:
    """Group `sequences`, which have one query each, by the number of blocks they see."""
    block_size = metadata.block_size
    rows = np.array(metadata.query_starts, dtype=np.int64)[sequences]
    ends = np.array(metadata.context_lens, dtype=np.int64)[sequences]
    starts = np.maximum(ends - window, 0) if window is not None else np.zeros_like(ends)
    first_blocks = starts // block_size
    num_blocks = (ends - 1) // block_size - first_blocks + 1
    order = np.argsort(num_blocks, kind="stable")
    groups = []
    for part in _split(num_blocks[order], tokens_per_group // block_size):
        members = order[part]
        spans = np.stack((first_blocks[members], num_blocks[members]), axis=1)
        tables = [metadata.block_tables[sequences[member]] for member in members]
        mask = _mask(starts[members], ends[members], spans, block_size)
        groups.append(
            DecodeGroup(
                rows=torch.from_numpy(rows[members]).to(device),
                block_ids=torch.from_numpy(_block_ids(tables, spans)).to(device),
                mask=torch.from_numpy(mask).to(device, dtype)[:, None, None],
            )
        )
    return groups


def _split(num_blocks: IntArray, max_blocks: int) -> Iterator[slice]:
    """Runs of ascending sizes whose padded sum stays within max_blocks, one member at least."""
    first = 0
    for index, size in enumerate(num_blocks):
        if index > first and (index + 1 - first) * size > max_blocks:
            yield slice(first, index)
            first = index
    if first < len(num_blocks):
        yield slice(first, len(num_blocks))


def _block_ids(tables: list[list[int]], spans: IntArray) -> IntArray:
    """The blocks each sequence sees, flat, padded with the null block."""
    ids = np.zeros((len(tables), spans[:, 1].max()), dtype=np.int64)
    for row, table, (first, count) in zip(ids, tables, spans.tolist(), strict=True):
        row[:count] = table[first : first + count]
    return ids.reshape(-1)


def _mask(
    starts: IntArray, ends: IntArray, spans: IntArray, block_size: int
) -> npt.NDArray[np.float32]:
    """[N, L]: 0 at the gathered positions from start up to end, else -infinity."""
    offsets = np.arange(spans[:, 1].max() * block_size)
    positions = spans[:, :1] * block_size + offsets
    visible = (positions >= starts[:, None]) & (positions < ends[:, None])
    return np.where(visible, np.float32(0), np.float32(-np.inf))
