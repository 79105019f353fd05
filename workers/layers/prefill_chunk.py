"""One sequence with several queries."""

from dataclasses import dataclass

import torch

from workers.kernels.attention_reference import causal_mask
from workers.kernels.attention_sdpa import attend_chunk
from workers.layers.attention import AttentionMetadata
from workers.layers.gather_buffers import GatherBuffers, Gathered
from workers.layers.kv_cache import LayerCache


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A run of a prompt, after what is already cached of its sequence."""

    rows: slice
    """Its rows in the batch."""
    length: int
    """Positions that any of its queries sees; the queries are the last of them."""
    block_ids: torch.Tensor | None
    """int64: the blocks with those positions; None if all of them are this step's rows."""
    mask: torch.Tensor | None
    """[queries, length]: 0 where visible, else -infinity. None if every query sees all up to
    itself."""

    def attend(
        self,
        query: torch.Tensor,
        fresh: Gathered,
        cache: LayerCache,
        buffers: GatherBuffers,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Fill this chunk's rows of output, [T, num_heads, head_dim] like query.

        `fresh` are this step's keys and values, [T, num_kv_heads, head_dim].
        """
        if self.block_ids is None:
            keys, values = fresh.keys[self.rows], fresh.values[self.rows]
        else:
            gathered = buffers.gather(cache, self.block_ids, query.dtype)
            keys, values = gathered.keys[: self.length], gathered.values[: self.length]
        output[self.rows] = attend_chunk(query[self.rows], keys, values, self.mask, scale)


def prefill_chunk(
    metadata: AttentionMetadata,
    sequence: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> PrefillChunk:
    """Plan the chunk of one sequence of the batch."""
    rows = slice(metadata.query_starts[sequence], metadata.query_starts[sequence + 1])
    num_queries = rows.stop - rows.start
    context_len = metadata.context_lens[sequence]
    if num_queries == context_len:
        length, block_ids = context_len, None
    else:
        first = _first_block(context_len - num_queries, window, metadata.block_size)
        length = context_len - first * metadata.block_size
        last = -(-context_len // metadata.block_size)
        block_ids = torch.tensor(metadata.block_tables[sequence][first:last], device=device)
    is_plain = num_queries == length and (window is None or window >= length)
    mask = None if is_plain else _mask(num_queries, length, window, dtype, device)
    return PrefillChunk(rows, length, block_ids, mask)


def _first_block(first_query: int, window: int | None, block_size: int) -> int:
    if window is None:
        return 0
    return max(first_query - window + 1, 0) // block_size


def _mask(
    num_queries: int, length: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    visible = causal_mask(num_queries, length, window, device)
    hidden = torch.tensor(float("-inf"), dtype=dtype, device=device)
    return torch.where(visible, torch.zeros_like(hidden), hidden)
