"""The fused attention kernels equal the plain one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference, causal_mask
from workers.kernels.attention_sdpa import attend_chunk, attend_decodes
from workers.kernels.paged_cache import gather_blocks, write_rows

HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1), (6, 2)])
WINDOWS = st.none() | st.integers(1, 40)


def _additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))


@settings(deadline=None, max_examples=60)
@given(HEADS, st.lists(st.integers(1, 40), min_size=1, max_size=5), WINDOWS, st.integers(0, 9))
def test_decodes_of_any_lengths(
    heads: tuple[int, int], lengths: list[int], window: int | None, padding: int
) -> None:
    """Each sequence of a padded group gets what it would get alone."""
    num_heads, num_kv_heads = heads
    padded = max(lengths) + padding
    query = torch.randn(len(lengths), num_heads, 8)
    keys, values = torch.randn(2, len(lengths), padded, num_kv_heads, 8)
    visible = torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in zip(visible, lengths, strict=True):
        row[:length] = causal_mask(1, length, window, query.device)
    found = attend_decodes(query, keys, values, _additive(visible)[:, None, None], 0.3)
    for index, length in enumerate(lengths):
        own_keys, own_values = keys[index, :length], values[index, :length]
        alone = attention_reference(query[index, None], own_keys, own_values, window, 0.3)
        torch.testing.assert_close(found[index].flatten(0, 1), alone[0])


@settings(deadline=None, max_examples=60)
@given(HEADS, st.integers(1, 40), st.integers(0, 40), WINDOWS)
def test_chunks_of_any_length_after_any_context(
    heads: tuple[int, int], num_queries: int, context: int, window: int | None
) -> None:
    num_heads, num_kv_heads = heads
    length = context + num_queries
    query = torch.randn(num_queries, num_heads, 8)
    keys, values = torch.randn(2, length, num_kv_heads, 8)
    visible = causal_mask(num_queries, length, window, query.device)
    is_plain = context == 0 and window is None
    found = attend_chunk(query, keys, values, None if is_plain else _additive(visible), 0.3)
    torch.testing.assert_close(found, attention_reference(query, keys, values, window, 0.3))


@given(st.permutations(range(12)), st.integers(0, 12))
def test_written_rows_are_gathered_again(slots: list[int], count: int) -> None:
    """Rows come back at block * block_size + offset, and no other slot changes."""
    cache = torch.zeros(4, 3, 2, 5)
    rows = torch.randn(count, 2, 5)
    write_rows(cache, rows, torch.tensor(slots[:count], dtype=torch.int64))
    gathered = gather_blocks(cache, torch.arange(4), torch.empty(5, 3, 2, 5))
    assert torch.equal(gathered[slots[:count]], rows)
    assert not gathered[slots[count:]].any()
