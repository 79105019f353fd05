"""StepPlan: what the leader writes is what other ranks read, and nothing else is taken for one."""

from array import array
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.batch import Batch, Chunk
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import RequestGroup, Sequence
from workers.engine.step_inputs import bucket, make_plan
from workers.engine.step_plan import Ints, PlanSizes, StepPlan

BLOCK = 4
NUM_SIZES = len(PlanSizes._fields)
TOKENS = st.integers(0, 2**40)
BLOCKS = st.lists(st.integers(0, 2**40), max_size=5)


@dataclass(frozen=True)
class Part:
    """A chunk of a sequence with so many tokens before it, of its prompt, and after it."""

    start: int
    length: int
    rest: int
    spare_blocks: int
    output: int
    is_scored: bool

    def chunk(self, draw: st.DrawFn, number: int) -> Chunk:
        end = self.start + self.length
        tokens = draw(st.lists(TOKENS, min_size=end + self.rest, max_size=end + self.rest))
        num_prompt = max(1, len(tokens) - self.output)
        params = SamplingParams(prompt_top_logprobs=1 if self.is_scored else None)
        request = Request(str(number), tokens[:num_prompt], params)
        sequence = Sequence(RequestGroup(request, number, 0.0, 8, b""), 0)
        for token in tokens[num_prompt:]:
            sequence.append(token)
        sequence.num_scheduled = self.start
        num_blocks = -(-end // BLOCK) + self.spare_blocks
        ids = st.integers(0, 2**40)
        sequence.block_table = array(
            "q", draw(st.lists(ids, min_size=num_blocks, max_size=num_blocks))
        )
        return Chunk.next_of(sequence, self.length)


PARTS = st.builds(
    Part,
    start=st.integers(0, 30),
    length=st.sampled_from([1, 1, 1, 2, 5, 17]),
    rest=st.sampled_from([0, 0, 1, 9]),
    spare_blocks=st.integers(0, 2),
    output=st.integers(0, 9),
    is_scored=st.booleans(),
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    batch = Batch()
    for number, part in enumerate(draw(st.lists(PARTS, min_size=1, max_size=6))):
        batch.add(part.chunk(draw, number), None)
    batch.copies = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))
    batch.cleared = draw(BLOCKS)
    batch.saves = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))
    batch.loads = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))
    return batch


def received(plan: StepPlan) -> StepPlan:
    """As another rank has it: read from the plan's bytes."""
    return StepPlan.read(np.frombuffer(bytearray(plan.buffer.tobytes()), dtype=np.int64))


def rows_of(batch: Batch) -> list[tuple[Chunk, int]]:
    """Chunk and position of each row."""
    return [(c, position) for c in batch.chunks for position in range(c.start, c.end)]


@settings(deadline=None, max_examples=150)
@given(batch=batches(), num_parts=st.integers(1, 3))
def test_every_rank_reads_what_the_batch_says(batch: Batch, num_parts: int) -> None:
    """Row by row, from the sequences themselves."""
    plan = received(make_plan(batch, BLOCK, num_parts))
    rows = rows_of(batch)
    num_rows = num_parts * bucket(-(-len(rows) // num_parts))
    padding = [0] * (num_rows - len(rows))
    assert plan.num_tokens == len(rows) == batch.num_tokens
    assert plan.token_ids.tolist() == [c.sequence.token_ids[p] for c, p in rows] + padding
    assert plan.positions.tolist() == [p for _, p in rows] + padding
    tables = [list(c.sequence.block_table) for c in batch.chunks]
    assert plan.slots.tolist() == [
        c.sequence.block_table[p // BLOCK] * BLOCK + p % BLOCK for c, p in rows
    ]
    assert plan.copy_pairs == batch.copies
    assert plan.cleared.tolist() == batch.cleared
    assert (plan.save_pairs, plan.load_pairs) == (batch.saves, batch.loads)
    assert plan.sampled_rows.tolist() == [
        row for row, (c, p) in enumerate(rows) if p == len(c.sequence.token_ids) - 1
    ]
    scored = [row for row, (c, p) in enumerate(rows) if is_scored(c.sequence, p)]
    assert plan.scored_rows.tolist() == scored
    assert [row for part in plan.scored_segments() for row in part.tolist()] == scored
    metadata = plan.metadata(BLOCK, torch.device("cpu"))
    assert metadata.query_starts == [0, *np.cumsum([c.length for c in batch.chunks]).tolist()]
    assert metadata.context_lens == [c.end for c in batch.chunks]
    assert [list(table) for table in metadata.block_tables] == tables
    assert metadata.slot_mapping.tolist() == plan.slots.tolist()
    assert metadata.block_size == BLOCK


def is_scored(sequence: Sequence, position: int) -> bool:
    wanted = sequence.group.request.params.prompt_top_logprobs is not None
    return wanted and not sequence.num_output and position + 1 < sequence.num_prompt


@settings(deadline=None, max_examples=60)
@given(batch=batches(), data=st.data())
def test_a_plan_cut_short_or_drawn_out_is_refused(batch: Batch, data: st.DataObject) -> None:
    whole = make_plan(batch, BLOCK).buffer
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="plan: "):
        StepPlan.read(whole[:cut])
    with pytest.raises(ValueError, match="plan: "):
        StepPlan.read(np.concatenate((whole, whole[: cut + 1])))


@settings(deadline=None, max_examples=100)
@given(batch=batches(), field=st.integers(0, NUM_SIZES - 1), data=st.data())
def test_a_length_that_was_changed_is_refused(
    batch: Batch, field: int, data: st.DataObject
) -> None:
    buffer = make_plan(batch, BLOCK).buffer
    wrong = data.draw(st.integers(-(2**63), 2**63 - 1).filter(lambda n: n != buffer[field]))
    buffer[field] = wrong
    with pytest.raises(ValueError, match="plan: "):
        StepPlan.read(buffer)


@settings(deadline=None, max_examples=100)
@given(
    batch=batches(),
    part=st.sampled_from(["query_starts", "table_lens", "sampled_rows", "scored_rows"]),
    data=st.data(),
)
def test_no_part_points_outside_of_another(batch: Batch, part: str, data: st.DataObject) -> None:
    """Whatever stands in the parts that say where others begin and end."""
    plan = make_plan(batch, BLOCK)
    numbers: Ints = getattr(plan, part)
    if not len(numbers):
        return
    place = data.draw(st.integers(0, len(numbers) - 1))
    limits = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40)
    numbers[place] = data.draw(limits)
    try:
        read = StepPlan.read(plan.buffer)
    except ValueError:
        return
    starts = read.query_starts.tolist()
    assert starts == sorted(set(starts))
    assert (starts[0], starts[-1]) == (0, read.num_tokens)
    assert sum(read.table_lens.tolist()) == len(read.tables)
    assert all(0 <= row < read.num_tokens for row in (*read.sampled_rows, *read.scored_rows))


@settings(deadline=None, max_examples=100)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=40))
def test_noise_is_refused_or_is_a_plan(numbers: list[int]) -> None:
    """Nothing but ValueError comes of it."""
    try:
        plan = StepPlan.read(np.array(numbers, dtype=np.int64))
    except ValueError:
        return
    plan.metadata(BLOCK, torch.device("cpu"))


def test_an_empty_plan_is_read_back() -> None:
    plan = StepPlan.read(StepPlan.empty().buffer)
    assert plan.num_tokens == 0
    assert not any(len(part) for part in (plan.token_ids, plan.tables, plan.sampled_rows))


def test_another_type_or_shape_is_refused() -> None:
    for wrong in (np.zeros(40, dtype=np.int32), np.zeros((5, 8), dtype=np.int64)):
        with pytest.raises(ValueError, match="plan: got"):
            StepPlan.read(wrong)  # type: ignore[arg-type]
