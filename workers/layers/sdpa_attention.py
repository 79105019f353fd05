"""The attention backend on torch's fused kernel: gather blocks, then attend densely."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.paged_cache import write_rows
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape
from workers.layers.decode_group import DecodeGroup, decode_groups
from workers.layers.gather_buffers import GatherBuffers, Gathered
from workers.layers.prefill_chunk import PrefillChunk, prefill_chunk

_GROUP_BYTES = 5 << 19
"""Keys and values gathered at a time for decoding. Small enough to be still in the cores' caches
when they are read, large enough to spread the cost of a call."""


class SdpaAttention:
    """Decodes in groups of similar length, prefills sequence by sequence."""

    def __init__(self, shape: AttentionShape) -> None:
        self._elements_per_token = 2 * shape.num_kv_heads * shape.head_dim
        self._buffers = GatherBuffers()

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend."""
        starts = metadata.query_starts
        decodes: list[int] = []
        prefills: list[int] = []
        for sequence in range(len(metadata.context_lens)):
            is_decode = starts[sequence + 1] - starts[sequence] == 1
            (decodes if is_decode else prefills).append(sequence)
        group_tokens = _GROUP_BYTES // (self._elements_per_token * dtype.itemsize)
        pieces = {
            window: Pieces(
                decode_groups(metadata, decodes, window, group_tokens, dtype, device),
                [prefill_chunk(metadata, prefill, window, dtype, device) for prefill in prefills],
            )
            for window in windows
        }
        return SdpaPlan(metadata.slot_mapping, pieces, self._buffers)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A batch cut into what one call of a kernel can do."""

    groups: list[DecodeGroup]
    chunks: list[PrefillChunk]


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """One step's pieces for each sliding window."""

    slots: torch.Tensor
    pieces: dict[int | None, Pieces]
    buffers: GatherBuffers

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
        """See AttentionPlan."""
        num_rows = self.slots.shape[0]
        write_rows(key_cache, key[:num_rows], self.slots)
        write_rows(value_cache, value[:num_rows], self.slots)
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        output[num_rows:] = 0
        pieces = self.pieces[window]
        for group in pieces.groups:
            group.attend(query, key_cache, value_cache, self.buffers, scale, output)
        fresh = Gathered(key, value)
        for chunk in pieces.chunks:
            chunk.attend(query, fresh, key_cache, value_cache, self.buffers, scale, output)
        return output
