"""Batches as plans."""

from array import array
from bisect import bisect_left
from itertools import chain
from typing import NamedTuple

import numpy as np

from workers.engine.batch import Batch
from workers.engine.sequence import BlockTable, Sequence
from workers.engine.step_plan import PlanSizes, StepPlan

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def make_plan(batch: Batch, block_size: int, num_parts: int = 1) -> StepPlan:
    """The plan of a batch that is not empty, in memory of its own.

    `num_parts` is the number of ranks that divide a step's rows equally among them.
    """
    rows = _Rows([], [], [])
    query_starts, context_lens, tables = [0], [], []
    sampled: list[int] = []
    scored: list[int] = []
    for sequence, start, length, _, samples, num_scored in batch.chunks:
        rows.add(sequence, start, length, block_size)
        first, end = query_starts[-1], query_starts[-1] + length
        query_starts.append(end)
        context_lens.append(start + length)
        tables.append(sequence.block_table)
        if samples:
            sampled.append(end - 1)
        if num_scored:
            scored += range(first, first + num_scored)
    table_lens = [*map(len, tables)]
    num_rows = num_parts * bucket(-(-batch.num_tokens // num_parts))
    sizes = PlanSizes(
        num_rows=num_rows,
        num_tokens=batch.num_tokens,
        num_chunks=len(tables),
        num_table_blocks=sum(table_lens),
        num_copies=len(batch.copies),
        num_cleared=len(batch.cleared),
        num_saves=len(batch.saves),
        num_loads=len(batch.loads),
        num_sampled=len(sampled),
        num_scored=len(scored),
    )
    padding = (0,) * (num_rows - batch.num_tokens)
    before = (*sizes, *rows.token_ids, *padding, *rows.positions, *padding, *rows.slots)
    copies, saves, loads = map(chain.from_iterable, (batch.copies, batch.saves, batch.loads))
    # Joined from few pieces, since each write into an array takes a microsecond.
    pieces: tuple[BlockTable, ...] = (
        array("q", (*before, *query_starts, *context_lens, *table_lens)),
        *tables,
        array("q", (*copies, *batch.cleared, *saves, *loads, *sampled, *scored)),
    )
    return StepPlan.of(np.frombuffer(bytearray().join(pieces), dtype=np.int64), sizes)


class _Rows(NamedTuple):
    token_ids: list[int]
    positions: list[int]
    slots: list[int]

    def add(self, sequence: Sequence, start: int, length: int, block_size: int) -> None:
        """Append the rows of a chunk."""
        if length == 1:
            self.token_ids.append(sequence.token_ids[start])
            self.positions.append(start)
            block, offset = divmod(start, block_size)
            self.slots.append(sequence.block_table[block] * block_size + offset)
        else:
            end = start + length
            self.token_ids.extend(sequence.token_ids[start:end])
            self.positions.extend(range(start, end))
            places = np.arange(start, end)
            blocks = np.frombuffer(sequence.block_table, dtype=np.int64)[places // block_size]
            self.slots.extend((blocks * block_size + places % block_size).tolist())


def bucket(num_rows: int) -> int:
    """The row count to pad to: GEMM libraries prepare a primitive for each one they meet."""
    if num_rows <= _BUCKETS[-1]:
        return _BUCKETS[bisect_left(_BUCKETS, num_rows)]
    return -(-num_rows // 128) * 128
