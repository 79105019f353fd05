"""Batches as plans."""

from array import array
from bisect import bisect_left
from itertools import chain

import numpy as np

from workers.engine.batch import Batch, Chunk
from workers.engine.sequence import BlockTable
from workers.engine.step_plan import PlanSizes, StepPlan

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def make_plan(batch: Batch, block_size: int, num_parts: int = 1) -> StepPlan:
    """The plan of a batch that is not empty, in memory of its own.

    `num_parts` is the number of ranks that divide a step's rows equally among them.
    """
    token_ids: list[int] = []
    sampled: list[int] = []
    scored: list[int] = []
    query_starts, context_lens, tables = [0], [], []
    for sequence, start, length, _, samples, num_scored in batch.chunks:
        first = len(token_ids)
        token_ids += sequence.token_ids[start : start + length]
        query_starts.append(first + length)
        context_lens.append(start + length)
        tables.append(sequence.block_table)
        if samples:
            sampled.append(first + length - 1)
        if num_scored:
            scored += range(first, first + num_scored)
    table_lens = [*map(len, tables)]
    num_rows = num_parts * bucket(-(-len(token_ids) // num_parts))
    sizes = PlanSizes(
        num_rows=num_rows,
        num_tokens=len(token_ids),
        num_chunks=len(tables),
        num_table_blocks=sum(table_lens),
        num_copies=len(batch.copies),
        num_cleared=len(batch.cleared),
        num_sampled=len(sampled),
        num_scored=len(scored),
    )
    padding = (0,) * (num_rows - len(token_ids))
    positions, slots = _places(batch.chunks, block_size)
    copies = chain.from_iterable(batch.copies)
    # Joined from few pieces, since each write into an array takes a microsecond.
    pieces: tuple[bytes | BlockTable, ...] = (
        array("q", (*sizes, *token_ids, *padding)),
        positions,
        array("q", padding),
        slots,
        array("q", (*query_starts, *context_lens, *table_lens)),
        *tables,
        array("q", (*copies, *batch.cleared, *sampled, *scored)),
    )
    return StepPlan.of(np.frombuffer(bytearray().join(pieces), dtype=np.int64), sizes)


def _places(chunks: list[Chunk], block_size: int) -> tuple[BlockTable, BlockTable]:
    """Positions and slots of all rows."""
    positions, slots = array("q"), array("q")
    for chunk in chunks:
        table = chunk.sequence.block_table
        if chunk.length == 1:
            block, offset = divmod(chunk.start, block_size)
            positions.append(chunk.start)
            slots.append(table[block] * block_size + offset)
        else:
            places = np.arange(chunk.start, chunk.end)
            blocks = np.frombuffer(table, dtype=np.int64)[places // block_size]
            positions.frombytes(places.tobytes())
            slots.frombytes((blocks * block_size + places % block_size).tobytes())
    return positions, slots


def bucket(num_rows: int) -> int:
    """The row count to pad to: GEMM libraries prepare a primitive for each one they meet."""
    if num_rows <= _BUCKETS[-1]:
        return _BUCKETS[bisect_left(_BUCKETS, num_rows)]
    return -(-num_rows // 128) * 128
