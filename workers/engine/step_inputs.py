"""A step's batch as the plan that ranks get."""

from bisect import bisect_left
from itertools import chain

import numpy as np

from workers.engine.batch import Batch
from workers.engine.step_plan import Ints, PlanSizes, StepPlan

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class StepInputs:
    """Writes one batch after another into a buffer of its own."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._buffer: Ints = np.empty(0, dtype=np.int64)

    def fill(self, batch: Batch) -> StepPlan:
        """The plan of a batch that is not empty; valid until the next call."""
        token_ids: list[int] = []
        sampled: list[int] = []
        scored: list[int] = []
        query_starts, context_lens, tables = [0], [], []
        for chunk in batch.chunks:
            first = len(token_ids)
            token_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
            query_starts.append(len(token_ids))
            context_lens.append(chunk.end)
            tables.append(chunk.sequence.block_table)
            if chunk.samples:
                sampled.append(len(token_ids) - 1)
            if chunk.num_scored:
                scored += range(first, first + chunk.num_scored)
        table_lens = [len(table) for table in tables]
        plan = self._lay_out(
            PlanSizes(
                num_rows=bucket(len(token_ids)),
                num_tokens=len(token_ids),
                num_chunks=len(tables),
                num_table_blocks=sum(table_lens),
                num_copies=len(batch.copies),
                num_cleared=len(batch.cleared),
                num_sampled=len(sampled),
                num_scored=len(scored),
            )
        )
        plan.token_ids[: len(token_ids)] = token_ids
        plan.token_ids[len(token_ids) :] = 0
        plan.query_starts[:] = query_starts
        plan.context_lens[:] = context_lens
        plan.table_lens[:] = table_lens
        plan.tables[:] = np.frombuffer(b"".join(tables), dtype=np.int64)
        plan.copies[:] = [*chain.from_iterable(batch.copies)]
        plan.cleared[:] = batch.cleared
        plan.sampled_rows[:] = sampled
        plan.scored_rows[:] = scored
        _place_rows(plan, self._block_size)
        return plan

    def _lay_out(self, sizes: PlanSizes) -> StepPlan:
        total = sizes.total
        if total > len(self._buffer):
            self._buffer = np.empty(2 * total, dtype=np.int64)
        return StepPlan.lay_out(self._buffer[:total], sizes)


def _place_rows(plan: StepPlan, block_size: int) -> None:
    """Write positions and slots, which follow from the rest."""
    num_tokens = plan.num_tokens
    positions = plan.positions[:num_tokens]
    lengths = np.diff(plan.query_starts)
    first_blocks = plan.table_lens.cumsum() - plan.table_lens
    positions[:] = _per_row(plan.context_lens - plan.query_starts[1:], lengths, num_tokens)
    positions += np.arange(num_tokens)
    plan.positions[num_tokens:] = 0
    blocks, offsets = np.divmod(positions, block_size)
    blocks += _per_row(first_blocks, lengths, num_tokens)
    np.multiply(plan.tables[blocks], block_size, out=plan.slots)
    np.add(plan.slots, offsets, out=plan.slots)


def _per_row(values: Ints, lengths: Ints, num_tokens: int) -> Ints:
    """Each chunk's value for each of its rows."""
    return values if len(values) == num_tokens else values.repeat(lengths)


def bucket(num_rows: int) -> int:
    """The row count to pad to: GEMM libraries prepare a primitive for each one they meet."""
    if num_rows <= _BUCKETS[-1]:
        return _BUCKETS[bisect_left(_BUCKETS, num_rows)]
    return -(-num_rows // 128) * 128
