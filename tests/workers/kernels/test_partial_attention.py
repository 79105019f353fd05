"""Parts of attention, joined, are the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference
from workers.kernels.partial_attention import merge_partials, partial_attention

SCALE = 0.3


@settings(deadline=None, max_examples=80)
@given(
    heads=st.sampled_from([(1, 1), (4, 1), (6, 2), (3, 3)]),
    context=st.integers(0, 60),
    num_queries=st.integers(1, 20),
    num_parts=st.integers(1, 5),
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**31),
)
def test_positions_in_any_parts_and_any_order(
    heads: tuple[int, int],
    context: int,
    num_queries: int,
    num_parts: int,
    window: int | None,
    seed: int,
) -> None:
    """Parts that are empty, or that a query sees nothing of, count for nothing."""
    random = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    length = context + num_queries
    query = torch.randn(num_queries, num_heads, 8, generator=random)
    keys, values = torch.randn(2, length, num_kv_heads, 8, generator=random)
    owners = torch.randint(num_parts, (length,), generator=random)
    order = torch.randperm(length, generator=random)
    parts = []
    for part in range(num_parts):
        held = order[owners[order] == part]
        positions = torch.arange(context, length)
        parts.append(
            partial_attention(query, positions, keys[held], values[held], held, window, SCALE)
        )
    out = merge_partials(
        torch.stack([part.out for part in parts]),
        torch.stack([part.log_sum_exp for part in parts]),
    )
    expected = attention_reference(query, keys, values, window, SCALE)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_scores_of_any_size() -> None:
    """The largest float32 scores that parts can have neither overflow nor vanish."""
    query = torch.full((1, 1, 2), 1e15)
    keys = torch.tensor([[[1e15, 1e15]], [[-1e15, -1e15]]])
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    here = torch.tensor([1])
    parts = [
        partial_attention(query, here, keys[n : n + 1], values[n : n + 1], here - 1 + n, None, 1.0)
        for n in range(2)
    ]
    out = merge_partials(*map(torch.stack, zip(*parts, strict=True)))
    assert torch.equal(out, values[:1])


def test_a_query_that_sees_nothing_is_zero() -> None:
    part = partial_attention(
        torch.ones(2, 1, 4),
        torch.tensor([5, 6]),
        torch.ones(1, 1, 4),
        torch.ones(1, 1, 4),
        torch.tensor([6]),
        None,
        1.0,
    )
    assert not part.out[0].any()
    assert part.log_sum_exp[0] == float("-inf")
    assert not merge_partials(part.out[None], part.log_sum_exp[None])[0].any()
