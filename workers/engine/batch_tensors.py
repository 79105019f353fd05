"""A step's plan as the tensors that the model takes."""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import torch

from workers.engine.batch import Batch, Chunk
from workers.layers.attention import AttentionMetadata

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class BatchTensors(NamedTuple):
    """What goes into the model, one row per token; rows past the batch's tokens are padding."""

    token_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]"""
    attention: AttentionMetadata


def build(batch: Batch, block_size: int, device: torch.device) -> BatchTensors:
    """The tensors for a batch that is not empty."""
    num_rows = bucket(batch.num_tokens)
    token_ids = np.zeros(num_rows, dtype=np.int64)
    positions = np.zeros(num_rows, dtype=np.int64)
    slots = np.empty(batch.num_tokens, dtype=np.int64)
    query_starts = [0]
    for chunk in batch.chunks:
        first = query_starts[-1]
        last = first + chunk.length
        query_starts.append(last)
        if chunk.length == 1:
            token_ids[first] = chunk.sequence.token_ids[chunk.start]
            positions[first] = chunk.start
            block, offset = divmod(chunk.start, block_size)
            slots[first] = chunk.sequence.block_table[block] * block_size + offset
        else:
            token_ids[first:last] = chunk.sequence.token_ids[chunk.start : chunk.end]
            positions[first:last] = np.arange(chunk.start, chunk.end)
            slots[first:last] = _slots(chunk, block_size)
    metadata = AttentionMetadata(
        query_starts=query_starts,
        context_lens=[chunk.end for chunk in batch.chunks],
        block_tables=[chunk.sequence.block_table for chunk in batch.chunks],
        slot_mapping=torch.from_numpy(slots).to(device),
        block_size=block_size,
    )
    return BatchTensors(
        torch.from_numpy(token_ids).to(device), torch.from_numpy(positions).to(device), metadata
    )


def bucket(num_rows: int) -> int:
    """The row count to pad to: GEMM libraries prepare a primitive for each one they meet."""
    if num_rows <= _BUCKETS[-1]:
        return _BUCKETS[bisect_left(_BUCKETS, num_rows)]
    return -(-num_rows // 128) * 128


def _slots(chunk: Chunk, block_size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where in the cache the chunk's keys and values go."""
    first_block = chunk.start // block_size
    table = np.array(chunk.sequence.block_table[first_block:], dtype=np.int64)
    positions = np.arange(chunk.start, chunk.end) - first_block * block_size
    slots: np.ndarray[tuple[int], np.dtype[np.int64]] = (
        table[positions // block_size] * block_size + positions % block_size
    )
    return slots
