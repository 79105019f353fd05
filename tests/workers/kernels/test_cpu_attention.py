"""The attention kernels equal plain attention, on every build."""

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
from workers.kernels.library import Library
from workers.kernels.rms_norm import head_norm
from workers.kernels.rotary import rotate

FIXTURES = [HealthCheck.function_scoped_fixture]


@settings(deadline=None, max_examples=40, suppress_health_check=FIXTURES)
@given(HEADS, DIMS, SEQUENCES, TYPES, st.none() | st.integers(1, 290), st.integers(0, 2))
def test_attention_of_any_shape(
    library: Library,
    heads: tuple[int, int],
    head_dim: int,
    sequences: list[Sequence],
    types: tuple[torch.dtype, torch.dtype | None],
    window: int | None,
    padding: int,
) -> None:
    """Equal to float32 up to one rounding, whatever the cache's type; padding rows are zero."""
    step = Step.random(Shape(*heads, head_dim), sequences, *types, padding=padding)
    out = step.attend(library, window)
    num_rows = len(out) - padding
    tolerance = 2e-5 if types[0] == torch.float32 else 1e-2
    torch.testing.assert_close(
        out[:num_rows].float(), step.expected(window), atol=tolerance, rtol=tolerance
    )
    assert not out[num_rows:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_depends_on_its_own_sequence_only(
    library: Library, dtype: torch.dtype, num_threads: int
) -> None:
    """To the last bit, in any batch, whatever the number of threads."""
    sequences = [Sequence(700, 1), Sequence(3, 1), Sequence(90, 45), Sequence(0, 100)]
    step = Step.random(Shape(6, 2, 64), sequences, dtype)
    library.set_num_threads(num_threads)
    together = step.attend(library)
    library.set_num_threads(1)
    first = 0
    for index, sequence in enumerate(sequences):
        rows = slice(first, first + sequence.queries)
        first = rows.stop
        alone = step._replace(
            sequences=[sequence], tables=[step.tables[index]], qkv=step.qkv[rows].contiguous()
        )
        assert torch.equal(alone.attend(library), together[rows])


def test_rows_of_a_prompt_do_not_depend_on_how_it_is_cut(library: Library) -> None:
    """As long as no piece is a single row."""
    step = Step.random(Shape(4, 2, 32), [Sequence(0, 150)])
    whole = step.attend(library)
    for first, last in ((0, 50), (50, 52), (52, 150)):
        piece = step._replace(
            sequences=[Sequence(first, last - first)], qkv=step.qkv[first:last].contiguous()
        )
        assert torch.equal(piece.attend(library), whole[first:last])


def test_what_is_past_a_sequence_does_not_matter(library: Library) -> None:
    """Even if it is not a number."""
    step = Step.random(Shape(2, 1, 32), [Sequence(19, 1), Sequence(4, 15)])
    expected = step.attend(library)
    used = torch.cat([step.slots(0), step.slots(1)])
    for store in (step.cache.keys, step.cache.values):
        rows = store.flatten(0, 1)
        kept = rows[used].clone()
        rows.fill_(float("nan"))
        rows[used] = kept
    assert torch.equal(step.attend(library), expected)


def test_a_query_that_is_not_a_number_gives_none(library: Library) -> None:
    step = Step.random(Shape(2, 1, 32), [Sequence(9, 1), Sequence(0, 9), Sequence(5, 1)])
    step.qkv[0] = float("nan")
    step.qkv[4] = float("nan")
    is_finite = step.attend(library).isfinite()
    assert not is_finite[0].any()
    assert not is_finite[4].any()
    assert is_finite[5:].all()


@settings(deadline=None, max_examples=40, suppress_health_check=FIXTURES)
@given(HEADS, DIMS, TYPES, st.booleans(), st.integers(1, 30))
def test_heads_are_normalised_rotated_and_written(
    library: Library,
    heads: tuple[int, int],
    head_dim: int,
    types: tuple[torch.dtype, torch.dtype | None],
    has_norm: bool,
    num_rows: int,
) -> None:
    shape = Shape(*heads, head_dim)
    step = Step.random(shape, [Sequence(5, num_rows)], *types, padding=1)
    dtype = types[0]
    num_rotated = shape.num_heads + shape.num_kv_heads
    weights = (torch.rand(num_rotated, head_dim) + 0.5).to(dtype) if has_norm else None
    table = torch.randn(64, head_dim).to(dtype)
    positions = torch.randint(0, 64, (num_rows + 1,))
    exact = step.qkv[:num_rows].float()
    rotated = exact[:, :num_rotated]
    if weights is not None:
        rotated = head_norm(rotated, weights.float(), 1e-5)
    cos, sin = table.float()[positions[:num_rows]][:, None].chunk(2, dim=-1)
    rotated = rotate(rotated, cos, sin)
    padding = step.qkv[num_rows:].clone()
    before = [store.clone() for store in step.cache[:2]]
    CpuAttention(library, *shape).write_heads(
        step.batch(), step.qkv, positions, table, weights, 1e-5, *step.cache
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        step.qkv[:num_rows, : shape.num_heads].float(),
        rotated[:, : shape.num_heads],
        atol=tolerance,
        rtol=tolerance,
    )
    assert torch.equal(step.qkv[num_rows:], padding)
    slots = step.slots(0)[5:]
    for found, expected in zip(
        step.cache.rows(slots),
        (rotated[:, shape.num_heads :], exact[:, num_rotated:]),
        strict=True,
    ):
        largest = expected.abs().amax(dim=-1, keepdim=True)
        step_size = largest / 127 if types[1] == torch.int8 else tolerance * (1 + largest)
        assert ((found - expected).abs() <= 0.51 * step_size).all()
    for store, old in zip(step.cache[:2], before, strict=True):
        others = torch.ones(len(store) * BLOCK, dtype=torch.bool)
        others[slots] = False
        assert torch.equal(store.flatten(0, 1)[others], old.flatten(0, 1)[others])


def test_a_negative_slot_is_written_nowhere(library: Library) -> None:
    step = Step.random(Shape(2, 1, 8), [Sequence(0, 2)])
    batch = CpuBatch()
    batch.set(torch.tensor([-1, 17]), [0, 2], [2], step.tables)
    before = step.cache.keys.clone()
    CpuAttention(library, *step.shape).write_heads(
        batch, step.qkv, torch.arange(2), torch.zeros(2, 8), None, 0.0, *step.cache
    )
    changed = (step.cache.keys != before).flatten(0, 1).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [17]


def test_recorded_calls_meet_the_batch_that_is_current(library: Library) -> None:
    first = Step.random(Shape(4, 2, 32), [Sequence(20, 1), Sequence(33, 1)])
    other = [Sequence(40, 1), Sequence(2, 1)]
    second = first._replace(sequences=other, tables=[[4, 1, 3], [5]])
    batch, out = first.batch(), torch.empty(2, 128)
    with library.recording() as program:
        CpuAttention(library, *first.shape).attend(
            batch, first.qkv, *first.cache, window=None, scale=SCALE, out=out
        )
    torch.testing.assert_close(out, first.expected(), atol=2e-5, rtol=2e-5)
    batch.set(torch.tensor([0, 0]), [0, 1, 2], [41, 3], second.tables)
    program.play()
    torch.testing.assert_close(out, second.expected(), atol=2e-5, rtol=2e-5)


def test_what_does_not_fit_is_refused_by_name(library: Library) -> None:
    step = Step.random(Shape(2, 1, 8), [Sequence(0, 2)])
    kernels = CpuAttention(library, *step.shape)
    out = torch.empty(2, 16)
    with pytest.raises(TypeError, match=r"qkv: torch\.float64"):
        kernels.attend(
            step.batch(), step.qkv.double(), *step.cache, window=None, scale=1.0, out=out
        )
    with pytest.raises(ValueError, match="out:"):
        kernels.attend(step.batch(), step.qkv, *step.cache, window=None, scale=1.0, out=out[:1])
    cache = step.cache._replace(key_scales=torch.zeros(2, BLOCK, 1))
    with pytest.raises(ValueError, match="key_scales: expected with int8"):
        kernels.attend(step.batch(), step.qkv, *cache, window=None, scale=1.0, out=out)
    with pytest.raises(ValueError, match="head_dim: got 7"):
        CpuAttention(library, 2, 1, 7)
    with pytest.raises(ValueError, match="slots:"):
        CpuBatch().set(torch.zeros(1, dtype=torch.int64), [0, 2], [2], step.tables)
