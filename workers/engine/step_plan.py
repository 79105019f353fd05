"""One step's plan as a flat buffer, which is all that ranks are told about it."""

from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch

from workers.layers.attention import AttentionMetadata

_SCORED_ROWS = 256
"""Rows whose logits for prompt logprobs are held in memory at a time."""

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


class PlanSizes(NamedTuple):
    """The lengths that a plan begins with, in this order."""

    num_rows: int
    """Padding included."""
    num_tokens: int
    num_chunks: int
    num_table_blocks: int
    """Of all chunks' tables together."""
    num_copies: int
    num_cleared: int
    num_saves: int
    num_loads: int
    num_sampled: int
    num_scored: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Lengths of StepPlan's parts, the buffer itself left out."""
        rows, tokens, chunks, table_blocks, copies, cleared, saves, loads, sampled, scored = self
        return (
            *(rows, rows, tokens),
            *(chunks + 1, chunks, chunks, table_blocks),
            *(2 * copies, cleared, 2 * saves, 2 * loads, sampled, scored),
        )

    @property
    def total(self) -> int:
        """Length of the whole plan, these lengths included."""
        return len(self) + sum(self.parts)


class StepPlan(NamedTuple):
    """What every rank needs to compute its share of one step. Values are int64 views of `buffer`.

    The leader makes it (see make_plan); other ranks read it back from the same bytes.
    """

    buffer: Ints
    """Everything below, one part after the other, behind PlanSizes."""
    token_ids: Ints
    """[T] rows of the step, those past `num_tokens` being padding."""
    positions: Ints
    """[T]"""
    slots: Ints
    """[num_tokens]: block id * block_size + offset for each row's key and value."""
    query_starts: Ints
    """[S + 1] row offsets of the S chunks."""
    context_lens: Ints
    """[S]"""
    table_lens: Ints
    """[S] lengths of the chunks' block tables."""
    tables: Ints
    """[sum(table_lens)] block ids, one table after the other."""
    copies: Ints
    """[2 * C]: source and destination of blocks to copy before anything is computed."""
    cleared: Ints
    """[Z] blocks to clear before that."""
    saves: Ints
    """[2 * V]: block and slot of host memory that it is saved to, before anything else."""
    loads: Ints
    """[2 * L]: slot of host memory and block that it is loaded to, after `copies`."""
    sampled_rows: Ints
    """[R] rows whose logits the leader samples from."""
    scored_rows: Ints
    """[P] rows whose logits the leader wants besides, for prompt logprobs."""

    @property
    def num_tokens(self) -> int:
        """Rows that are not padding."""
        return len(self.slots)

    @property
    def copy_pairs(self) -> list[tuple[int, int]]:
        """(source, destination) of each copy."""
        return _pairs(self.copies)

    @property
    def save_pairs(self) -> list[tuple[int, int]]:
        """(block, slot) of each block to save."""
        return _pairs(self.saves)

    @property
    def load_pairs(self) -> list[tuple[int, int]]:
        """(slot, block) of each slot to load."""
        return _pairs(self.loads)

    @classmethod
    def of(cls, buffer: Ints, sizes: PlanSizes) -> "StepPlan":
        """The plan in a buffer that holds one of these sizes."""
        offsets = accumulate(sizes.parts, initial=len(sizes))
        return cls(buffer, *[buffer[first:last] for first, last in pairwise(offsets)])

    @classmethod
    def empty(cls) -> "StepPlan":
        """A plan to compute nothing: ranks use the quiet moment, see RankRunner.rest."""
        sizes = PlanSizes(*[0] * len(PlanSizes._fields))
        return cls.of(np.zeros(sizes.total, dtype=np.int64), sizes)

    @classmethod
    def read(cls, buffer: Ints) -> "StepPlan":
        """The plan in a buffer that another rank's plan was written to.

        Raises ValueError if the buffer cannot be one, which says what does not fit. Whether tokens,
        blocks and slots exist in the model and the cache is not looked at.
        """
        num_sizes = len(PlanSizes._fields)
        if buffer.ndim != 1 or buffer.dtype != np.int64 or len(buffer) < num_sizes:
            raise ValueError(
                f"plan: got {buffer.dtype} {buffer.shape}, expected int64 ({num_sizes} or more,)"
            )
        sizes = PlanSizes(*buffer[:num_sizes].tolist())
        if not any(sizes) and len(buffer) == sizes.total:
            return cls.of(buffer, sizes)
        if min(sizes) < 0 or not 0 < sizes.num_chunks <= sizes.num_tokens <= sizes.num_rows:
            raise ValueError(f"plan: impossible lengths {sizes}")
        if sizes.total != len(buffer):
            raise ValueError(f"plan: {len(buffer)} numbers, expected {sizes.total} for {sizes}")
        plan = cls.of(buffer, sizes)
        plan._check_offsets()
        return plan

    def scored_segments(self) -> list[Ints]:
        """scored_rows in the parts that logits are computed of at a time."""
        firsts = range(0, len(self.scored_rows), _SCORED_ROWS)
        return [self.scored_rows[first : first + _SCORED_ROWS] for first in firsts]

    def metadata(self, block_size: int, device: torch.device) -> AttentionMetadata:
        """The batch as attention sees it; its tables are views of the buffer."""
        ends = self.table_lens.cumsum().tolist()
        return AttentionMetadata(
            query_starts=self.query_starts.tolist(),
            context_lens=self.context_lens.tolist(),
            block_tables=[self.tables[first:last] for first, last in pairwise([0, *ends])],
            slot_mapping=torch.from_numpy(self.slots).to(device),
            block_size=block_size,
        )

    def _check_offsets(self) -> None:
        """Raise ValueError if a part points to where another one is not."""
        lengths = np.diff(self.query_starts)
        first, last = self.query_starts[[0, -1]].tolist()
        if (first, last) != (0, self.num_tokens) or not _within(lengths, 1, self.num_tokens):
            raise ValueError(f"plan: query_starts {self.query_starts}, {self.num_tokens} tokens")
        if (self.context_lens < lengths).any():
            raise ValueError(f"plan: context_lens {self.context_lens} for chunks of {lengths}")
        num_blocks = len(self.tables)
        if not _within(self.table_lens, 1, num_blocks) or self.table_lens.sum() != num_blocks:
            raise ValueError(f"plan: table_lens {self.table_lens}, {num_blocks} blocks")
        for name, rows in (("sampled", self.sampled_rows), ("scored", self.scored_rows)):
            if not _within(rows, 0, self.num_tokens - 1):
                raise ValueError(f"plan: {name}_rows {rows}, expected below {self.num_tokens}")


def _pairs(numbers: Ints) -> list[tuple[int, int]]:
    flat = numbers.tolist()
    return list(zip(flat[::2], flat[1::2], strict=True))


def _within(values: Ints, least: int, most: int) -> bool:
    return not len(values) or bool(least <= values.min() and values.max() <= most)
