"""The kernels of attention over parts of sequences equal their plain forms, on every build."""

from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.kernels.attention_step import (
    BLOCK,
    DIMS,
    HEADS,
    SCALE,
    SEQUENCES,
    TYPES,
    Sequence,
    Shape,
    Step,
)
from workers.kernels.cpu_attention import CpuAttention
from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.cpu_partial_attention import CpuPartialAttention
from workers.kernels.library import Library
from workers.kernels.partial_attention import merge_partials, partial_attention

FIXTURES = [HealthCheck.function_scoped_fixture]


def part_batch(step: Step, owners: list[list[int]], part: int) -> CpuBatch:
    """The step with those blocks of each sequence that a part owns."""
    whole, starts, slots = step.batch(), [0], []
    for index, sequence in enumerate(step.sequences):
        starts.append(starts[-1] + sequence.queries)
        fresh = step.slots(index)[sequence.context :]
        blocks = torch.arange(sequence.context, sequence.length) // BLOCK
        slots.append(torch.where(torch.tensor(owners[index])[blocks] == part, fresh, -1))
    places = [[n for n, owner in enumerate(one) if owner == part] for one in owners]
    tables = [
        [table[place] for place in held] for table, held in zip(step.tables, places, strict=True)
    ]
    whole.set(torch.cat(slots), starts, [s.length for s in step.sequences], tables, places)
    return whole


def expected_part(
    step: Step, owners: list[list[int]], part: int, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    outs, log_sum_exps, first = [], [], 0
    for index, sequence in enumerate(step.sequences):
        query = step.qkv[first : first + sequence.queries, : step.shape.num_heads].float()
        first += sequence.queries
        positions = torch.arange(sequence.length)
        held = positions[torch.tensor(owners[index])[positions // BLOCK] == part]
        keys, values = step.cache.rows(step.slots(index)[held])
        there = positions[sequence.context :]
        found = partial_attention(query, there, keys, values, held, window, SCALE)
        outs.append(found.out)
        log_sum_exps.append(found.log_sum_exp)
    return torch.cat(outs), torch.cat(log_sum_exps)


@settings(deadline=None, max_examples=40, suppress_health_check=FIXTURES)
@given(
    HEADS,
    DIMS,
    SEQUENCES,
    TYPES,
    st.none() | st.integers(1, 290),
    st.integers(0, 2),
    st.integers(1, 3),
)
def test_parts_of_any_shape(
    library: Library,
    heads: tuple[int, int],
    head_dim: int,
    sequences: list[Sequence],
    types: tuple[torch.dtype, torch.dtype | None],
    window: int | None,
    padding: int,
    num_parts: int,
) -> None:
    """Each part equals the plain one, and all of them joined the whole; padding rows are zero."""
    step = Step.random(Shape(*heads, head_dim), sequences, *types, padding=padding)
    owners = [torch.randint(num_parts, (len(table),)).tolist() for table in step.tables]
    kernels = CpuPartialAttention(library, *step.shape)
    num_rows, num_heads = len(step.qkv) - padding, heads[0]
    parts = torch.full((num_parts, len(step.qkv), kernels.partial_width), float("nan"))
    for part, out in enumerate(parts):
        batch = part_batch(step, owners, part)
        kernels.attend(batch, step.qkv, *step.cache, window=window, scale=SCALE, out=out)
        results, log_sum_exps = expected_part(step, owners, part, window)
        found = out[:num_rows, :-num_heads].view_as(results)
        torch.testing.assert_close(found, results, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(out[:num_rows, -num_heads:], log_sum_exps, atol=2e-5, rtol=2e-5)
        assert not out[num_rows:].any()
    joined = torch.full((len(step.qkv), num_heads * head_dim), float("nan")).to(step.qkv.dtype)
    kernels.merge(parts, joined)
    tolerance = 2e-5 if types[0] == torch.float32 else 1e-2
    torch.testing.assert_close(
        joined[:num_rows].float(), step.expected(window), atol=tolerance, rtol=tolerance
    )
    assert not joined[num_rows:].any()


@settings(deadline=None, max_examples=30, suppress_health_check=FIXTURES)
@given(HEADS, DIMS, TYPES, st.booleans(), st.integers(1, 30))
def test_rotating_and_writing_apart_is_both_at_once(
    library: Library,
    heads: tuple[int, int],
    head_dim: int,
    types: tuple[torch.dtype, torch.dtype | None],
    has_norm: bool,
    num_rows: int,
) -> None:
    """But for one rounding of keys to the type of activations, before they become int8."""
    step = Step.random(Shape(*heads, head_dim), [Sequence(5, num_rows)], *types)
    num_rotated = sum(heads)
    norm = (torch.rand(num_rotated, head_dim) + 0.5).to(types[0]) if has_norm else None
    table = torch.randn(64, head_dim).to(types[0])
    positions = torch.randint(0, 64, (num_rows,))
    apart = step._replace(qkv=step.qkv.clone(), cache=deepcopy(step.cache))
    CpuAttention(library, *step.shape).write_heads(
        step.batch(), step.qkv, positions, table, norm, 1e-5, *step.cache
    )
    kernels = CpuPartialAttention(library, *step.shape)
    kernels.rotate_heads(apart.qkv, positions, table, norm, 1e-5)
    kernels.write_tokens(apart.batch(), apart.qkv, *apart.cache)
    assert torch.equal(apart.qkv[:, : heads[0]], step.qkv[:, : heads[0]])
    slots = torch.arange(len(step.cache.keys) * BLOCK)
    atol = 0.0 if types != (torch.bfloat16, torch.int8) else 0.2
    for found, expected in zip(apart.cache.rows(slots), step.cache.rows(slots), strict=True):
        torch.testing.assert_close(found, expected, atol=atol, rtol=0.0)


def test_rows_of_other_parts_are_written_nowhere(library: Library) -> None:
    step = Step.random(Shape(2, 1, 8), [Sequence(0, 2)])
    batch = CpuBatch()
    batch.set(torch.tensor([-1, 17]), [0, 2], [2], step.tables)
    before = step.cache.keys.clone()
    CpuPartialAttention(library, *step.shape).write_tokens(batch, step.qkv, *step.cache)
    changed = (step.cache.keys != before).flatten(0, 1).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [17]


def test_what_is_not_a_number_stays_so_when_parts_are_joined(library: Library) -> None:
    kernels = CpuPartialAttention(library, 2, 1, 8)
    parts = torch.randn(3, 4, kernels.partial_width)
    parts[1, 2, 0] = parts[2, 3, -1] = float("nan")
    parts[:, 1, -1] = float("-inf")
    out = torch.empty(4, 16)
    kernels.merge(parts, out)
    expected = merge_partials(parts[..., :-2].unflatten(-1, (2, 8)), parts[..., -2:])  # type: ignore[no-untyped-call]
    torch.testing.assert_close(out.view(4, 2, 8), expected, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert out[3, 8:].isnan().all()
    assert not out[1, 8:].any()


def test_what_does_not_fit_is_refused_by_name(library: Library) -> None:
    step = Step.random(Shape(2, 1, 8), [Sequence(0, 2)])
    kernels = CpuPartialAttention(library, *step.shape)
    out = torch.empty(2, kernels.partial_width, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"out: torch\.bfloat16"):
        kernels.attend(step.batch(), step.qkv, *step.cache, window=None, scale=1.0, out=out)
    with pytest.raises(ValueError, match="parts:"):
        kernels.merge(torch.empty(2, 3, 16), torch.empty(3, 16))
    with pytest.raises(ValueError, match="positions:"):
        kernels.rotate_heads(
            step.qkv, torch.zeros(3, dtype=torch.int64), torch.zeros(4, 8), None, 0.0
        )
