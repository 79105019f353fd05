"""A step's plan as the tensors that the model takes."""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import torch

from workers.engine.batch import Batch, Chunk
from workers.layers.attention import AttentionMetadata

_Ints = np.ndarray[tuple[int], np.dtype[np.int64]]

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class BatchTensors(NamedTuple):
    """What goes into the model, one row per token; rows past the batch's tokens are padding."""

    token_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]"""
    attention: AttentionMetadata


class StepInputs:
    """The inputs of one step after another, in memory that stays where it is."""

    def __init__(self, max_num_tokens: int, block_size: int, device: torch.device) -> None:
        self.max_rows = bucket(max_num_tokens)
        """Of any step."""
        self._block_size = block_size
        self._device = device
        self._token_ids = np.zeros(self.max_rows, dtype=np.int64)
        self._positions = np.zeros(self.max_rows, dtype=np.int64)
        self._slots = np.zeros(self.max_rows, dtype=np.int64)

    def fill(self, batch: Batch) -> BatchTensors:
        """The tensors for a batch that is not empty; on a CPU, valid until the next call."""
        num_rows = bucket(batch.num_tokens)
        token_ids, positions = self._token_ids[:num_rows], self._positions[:num_rows]
        token_ids[batch.num_tokens :] = 0
        positions[batch.num_tokens :] = 0
        slots = self._slots[: batch.num_tokens]
        query_starts = _write_chunks(batch, self._block_size, token_ids, positions, slots)
        metadata = AttentionMetadata(
            query_starts=query_starts,
            context_lens=[chunk.end for chunk in batch.chunks],
            block_tables=[chunk.sequence.block_table for chunk in batch.chunks],
            slot_mapping=torch.from_numpy(slots).to(self._device),
            block_size=self._block_size,
        )
        ids, places = torch.from_numpy(token_ids), torch.from_numpy(positions)
        return BatchTensors(ids.to(self._device), places.to(self._device), metadata)


def _write_chunks(
    batch: Batch, block_size: int, token_ids: _Ints, positions: _Ints, slots: _Ints
) -> list[int]:
    """Write each chunk's rows one after the other; where each begins, and the end."""
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
    return query_starts


def bucket(num_rows: int) -> int:
    """The row count to pad to: GEMM libraries prepare a primitive for each one they meet."""
    if num_rows <= _BUCKETS[-1]:
        return _BUCKETS[bisect_left(_BUCKETS, num_rows)]
    return -(-num_rows // 128) * 128


def _slots(chunk: Chunk, block_size: int) -> _Ints:
    """Where in the cache the chunk's keys and values go."""
    first_block = chunk.start // block_size
    table = np.array(chunk.sequence.block_table[first_block:], dtype=np.int64)
    positions = np.arange(chunk.start, chunk.end) - first_block * block_size
    slots: _Ints = table[positions // block_size] * block_size + positions % block_size
    return slots
