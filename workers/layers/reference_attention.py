"""The attention backend in plain torch."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.attention_reference import attention_reference
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape, HeadNorm
from workers.layers.gather_buffers import GatherBuffers
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation
from workers.layers.written_heads import write_heads


class ReferenceAttention:
    """Attends sequence by sequence with float32 softmax; slow, and simple enough to trust."""

    is_native = False

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend."""
        return ReferencePlan(metadata, self._shape)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """Nothing is worked out ahead."""

    metadata: AttentionMetadata
    shape: AttentionShape

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
        batch = self.metadata
        query = write_heads(qkv, self.shape, rotation, head_norm, cache, batch.slot_mapping).query
        out[batch.query_starts[-1] :] = 0
        for sequence, context_len in enumerate(batch.context_lens):
            rows = slice(batch.query_starts[sequence], batch.query_starts[sequence + 1])
            table = torch.tensor(batch.block_tables[sequence], device=qkv.device)
            gathered = GatherBuffers().gather(cache, table, torch.float32)
            keys, values = gathered.keys[:context_len], gathered.values[:context_len]
            attended = attention_reference(query[rows], keys, values, window, scale)
            out[rows] = attended.flatten(1)
