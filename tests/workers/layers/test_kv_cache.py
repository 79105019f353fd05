"""The paged store."""

from typing import NamedTuple

import torch

from workers.layers.kv_cache import KVCache


class Shape(NamedTuple):
    num_layers: int = 2
    num_kv_heads: int = 3
    head_dim: int = 4


def _random_cache(num_blocks: int) -> KVCache:
    cache = KVCache.allocate(Shape(), num_blocks, 5, torch.bfloat16, "cpu")
    for store in (*cache.keys, *cache.values):
        store.normal_()
    return cache


def test_bytes_per_block_is_what_a_block_takes() -> None:
    cache = KVCache.allocate(Shape(), 7, 5, torch.bfloat16, "cpu")
    total = sum(store.nbytes for store in (*cache.keys, *cache.values))
    assert KVCache.bytes_per_block(Shape(), 5, torch.bfloat16) * 7 == total


def test_copies_reach_every_layer_and_nothing_else() -> None:
    cache = _random_cache(6)
    before = [store.clone() for store in (*cache.keys, *cache.values)]
    cache.copy_blocks([(1, 4), (1, 5), (2, 3)])
    for store, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(store, old[[0, 1, 2, 2, 1, 1]])


def test_zeroed_blocks_are_zero_in_every_layer_even_where_they_were_not_numbers() -> None:
    cache = _random_cache(4)
    cache.values[1][2] = float("nan")
    cache.zero_blocks([2, 3])
    for store in (*cache.keys, *cache.values):
        assert not store[2:].any()
        assert store[:2].all()


def test_nothing_to_do_is_fine() -> None:
    cache = _random_cache(2)
    cache.copy_blocks([])
    cache.zero_blocks([])
