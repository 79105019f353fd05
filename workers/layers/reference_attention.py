"""The attention backend in plain torch."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.attention_reference import attention_reference
from workers.kernels.paged_cache import write_rows
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape


class ReferenceAttention:
    """Attends sequence by sequence with float32 softmax; slow, and simple enough to trust."""

    def __init__(self, shape: AttentionShape) -> None:
        """The shape is read off the tensors instead."""

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend."""
        return ReferencePlan(metadata)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """Nothing is worked out ahead."""

    metadata: AttentionMetadata

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
        batch = self.metadata
        num_rows = batch.query_starts[-1]
        write_rows(key_cache, key[:num_rows], batch.slot_mapping)
        write_rows(value_cache, value[:num_rows], batch.slot_mapping)
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for sequence, context_len in enumerate(batch.context_lens):
            rows = slice(batch.query_starts[sequence], batch.query_starts[sequence + 1])
            table = torch.tensor(batch.block_tables[sequence], device=query.device)
            keys = key_cache[table].flatten(0, 1)[:context_len]
            values = value_cache[table].flatten(0, 1)[:context_len]
            output[rows] = attention_reference(query[rows], keys, values, window, scale)
        return output
