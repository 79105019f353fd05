"""The attention backend on torch's fused kernel: gather blocks, then attend densely."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape, HeadNorm
from workers.layers.decode_group import DecodeGroup, decode_groups
from workers.layers.gather_buffers import GatherBuffers, Gathered
from workers.layers.kv_cache import LayerCache
from workers.layers.prefill_chunk import PrefillChunk, prefill_chunk
from workers.layers.rotary import Rotation
from workers.layers.written_heads import write_heads

_GROUP_BYTES = 5 << 19
"""Keys and values gathered at a time for decoding. Small enough to be still in the cores' caches
when they are read, large enough to spread the cost of a call."""


class SdpaAttention:
    """Decodes in groups of similar length, prefills sequence by sequence."""

    is_native = False

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
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
        return SdpaPlan(self._shape, metadata.slot_mapping, pieces, self._buffers)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A batch cut into what one call of a kernel can do."""

    groups: list[DecodeGroup]
    chunks: list[PrefillChunk]


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """One step's pieces for each sliding window."""

    shape: AttentionShape
    slots: torch.Tensor
    pieces: dict[int | None, Pieces]
    buffers: GatherBuffers

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
        """See AttentionPlan."""
        heads = write_heads(qkv, self.shape, rotation, head_norm, cache, self.slots)
        out[self.slots.shape[0] :] = 0
        attended = out.view(-1, self.shape.num_heads, self.shape.head_dim)
        pieces = self.pieces[window]
        for group in pieces.groups:
            group.attend(heads.query, cache, self.buffers, scale, attended)
        fresh = Gathered(heads.key, heads.value)
        for chunk in pieces.chunks:
            chunk.attend(heads.query, fresh, cache, self.buffers, scale, attended)
