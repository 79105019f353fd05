"""Ranks that share a batch and its cache attend as one would."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.layers.attention_batch import Batch, Row, Setup, setups
from tests.workers.parallel.thread_group import run_ranks
from workers.kernels.library import Library, load_library
from workers.layers.block_exchange import copy_blocks, zero_blocks
from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import KVCache, LayerCache
from workers.layers.sequence_attention import SequenceParallelAttention
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout

KERNELS = load_library()
LIBRARIES = pytest.mark.parametrize(
    "library",
    [None, pytest.param(KERNELS, marks=pytest.mark.skipif(KERNELS is None, reason="no kernels"))],
    ids=["torch", "native"],
)


def part_of(layer: LayerCache, share: BlockShare) -> LayerCache:
    """What a rank holds of a cache."""
    keys, values, *scales = layer
    key_scales, value_scales = (None if s is None else _part(s, share) for s in scales)
    return LayerCache(_part(keys, share), _part(values, share), key_scales, value_scales)


def _part(store: torch.Tensor, share: BlockShare) -> torch.Tensor:
    missing = -len(store) % share.size
    whole = torch.cat((store, store.new_zeros(missing, *store.shape[1:])))
    return whole[share.rank :: share.size].clone()


def joined(parts: list[LayerCache], num_blocks: int) -> list[torch.Tensor]:
    """The stores of one cache of all ranks' own."""
    stores = zip(*map(stores_of, parts), strict=True)
    return [torch.stack(part, dim=1).flatten(0, 1)[:num_blocks] for part in stores]


def stores_of(layer: LayerCache) -> list[torch.Tensor]:
    return [store for store in layer if store is not None]


def run(
    batch: Batch, size: int, library: Library | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All rows of the ranks' outputs, and the cache they leave."""
    num_rows = -(-(batch.metadata.query_starts[-1] + batch.setup.padding) // size) * size

    def body(ranks: Ranks) -> tuple[torch.Tensor, LayerCache]:
        group = ranks.sequence
        layer = part_of(batch.layer, BlockShare(group.rank, size))
        own = num_rows // size
        rows = slice(group.rank * own, (group.rank + 1) * own)
        backend = SequenceParallelAttention(batch.setup.shape, group, library)
        return batch.run_rows(backend, layer, rows, num_rows), layer

    parts = run_ranks(ParallelLayout(sequence=size), body)
    cache = joined([layer for _, layer in parts], len(batch.layer.keys))
    return torch.cat([out for out, _ in parts]), cache


@LIBRARIES
@settings(deadline=None, max_examples=80)
@given(setup=setups(), size=st.integers(1, 4))
def test_each_sequence_as_if_alone_on_one_rank(
    library: Library | None, setup: Setup, size: int
) -> None:
    """Whatever the chunks, windows, head groups, norms, cache types, and blocks, in any order."""
    batch = Batch(setup)
    output, _ = run(batch, size, library)
    # A rounding difference before int8 may move an element by a whole step.
    atol = 1e-5 if setup.cache_dtype == torch.float32 else 5e-2
    for sequence, expected in enumerate(batch.expected()):
        rows = slice(*batch.metadata.query_starts[sequence : sequence + 2])
        torch.testing.assert_close(output[rows], expected, atol=atol, rtol=1e-4)
    assert not output[batch.metadata.query_starts[-1] :].any()


@LIBRARIES
@settings(deadline=None, max_examples=20)
@given(setup=setups(), size=st.integers(2, 4))
def test_ranks_hold_together_what_one_would(
    library: Library | None, setup: Setup, size: int
) -> None:
    """Every key and value is with one rank, and no rank has touched any other block."""
    batch = Batch(setup)
    _, divided = run(batch, size, library)
    num_rows = batch.metadata.query_starts[-1] + setup.padding
    solo = SequenceParallelAttention(setup.shape, one_rank().sequence, library)
    batch.run_rows(solo, batch.layer, slice(0, num_rows), num_rows)
    for store, expected in zip(divided, stores_of(batch.layer), strict=True):
        assert torch.equal(store, expected)


def one_rank() -> Ranks:
    (ranks,) = run_ranks(ParallelLayout(), lambda ranks: ranks)
    return ranks


@LIBRARIES
def test_a_value_that_is_not_finite_reaches_its_own_sequence_only(library: Library | None) -> None:
    batch = Batch(Setup([Row(5, 1), Row(0, 6)], 2, 1, 4, None, padding=0))
    batch.raw[0][5] = float("nan")
    output, _ = run(batch, 2, library)
    assert output[0].isnan().all()
    assert output[1:].isfinite().all()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    st.sampled_from([1, 4]),
    st.data(),
)
def test_blocks_are_copied_and_cleared_whoever_holds_them(
    size: int, dtype: torch.dtype, block_size: int, data: st.DataObject
) -> None:
    setup = Setup([], 2, 1, block_size, None, padding=0, head_dim=10, num_layers=2)
    num_blocks = 24
    ids = data.draw(st.permutations(range(1, num_blocks)))
    num_pairs = data.draw(st.integers(0, 8))
    sources = data.draw(st.lists(st.sampled_from(ids[8:]), min_size=num_pairs, max_size=num_pairs))
    pairs = list(zip(sources, ids, strict=False))
    cleared = ids[20:]
    whole = KVCache.allocate(setup, num_blocks, block_size, dtype, "cpu")
    for store in whole.stores():
        store.copy_(torch.randint(-100, 100, store.shape))

    def body(ranks: Ranks) -> list[LayerCache]:
        share = BlockShare(ranks.sequence.rank, size)
        own = KVCache([part_of(layer, share) for layer in whole.layers])
        zero_blocks(own, cleared, share)
        copy_blocks(own, pairs, ranks.sequence)
        return own.layers

    parts = run_ranks(ParallelLayout(sequence=size), body)
    whole.zero_blocks(cleared)
    whole.copy_blocks(pairs)
    for layers, expected in zip(zip(*parts, strict=True), whole.layers, strict=True):
        found = joined(list(layers), num_blocks)
        for store, wanted in zip(found, stores_of(expected), strict=True):
            assert torch.equal(store, wanted)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_block_but_the_null_block_has_one_holder(size: int) -> None:
    shares = [BlockShare(rank, size) for rank in range(size)]
    for block in range(1, 40):
        holders = [share for share in shares if share.holds(block)]
        assert [share.rank for share in holders] == [shares[0].owner(block)]
    assert not any(share.holds(0) for share in shares)
    places = {(shares[0].owner(block), shares[0].local(block)) for block in range(40)}
    assert len(places) == 40
