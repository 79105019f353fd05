"""The paged store."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

from workers.layers.kv_cache import KVCache

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])


class Shape(NamedTuple):
    num_layers: int = 2
    num_kv_heads: int = 3
    head_dim: int = 4


def _stores(cache: KVCache) -> Iterator[torch.Tensor]:
    return (store for layer in cache.layers for store in layer if store is not None)


def _random_cache(num_blocks: int, dtype: torch.dtype) -> KVCache:
    cache = KVCache.allocate(Shape(), num_blocks, 5, dtype, "cpu")
    for store in _stores(cache):
        store.copy_(torch.randint(1, 100, store.shape))
    return cache


@DTYPES
def test_bytes_per_block_is_what_a_block_takes(dtype: torch.dtype) -> None:
    cache = KVCache.allocate(Shape(), 7, 5, dtype, "cpu")
    total = sum(store.nbytes for store in _stores(cache))
    assert KVCache.bytes_per_block(Shape(), 5, dtype) * 7 == total


@DTYPES
def test_a_new_cache_is_zero(dtype: torch.dtype) -> None:
    assert not any(store.any() for store in _stores(KVCache.allocate(Shape(), 7, 5, dtype, "cpu")))


def test_int8_has_a_scale_for_each_head_of_each_token() -> None:
    for layer in KVCache.allocate(Shape(), 7, 5, torch.int8, "cpu").layers:
        for scales in (layer.key_scales, layer.value_scales):
            assert scales is not None
            assert scales.shape == (7, 5, 3)
            assert scales.dtype == torch.float32


@DTYPES
def test_copies_reach_every_layer_and_nothing_else(dtype: torch.dtype) -> None:
    cache = _random_cache(6, dtype)
    before = [store.clone() for store in _stores(cache)]
    cache.copy_blocks([(1, 4), (1, 5), (2, 3)])
    for store, old in zip(_stores(cache), before, strict=True):
        assert torch.equal(store, old[[0, 1, 2, 2, 1, 1]])


@DTYPES
def test_zeroed_blocks_are_zero_in_every_layer(dtype: torch.dtype) -> None:
    cache = _random_cache(4, dtype)
    cache.zero_blocks([2, 3])
    for store in _stores(cache):
        assert not store[2:].any()
        assert store[:2].all()


def test_what_is_not_a_number_is_zeroed_too() -> None:
    cache = _random_cache(4, torch.bfloat16)
    cache.layers[1].values[2] = float("nan")
    cache.zero_blocks([2])
    assert not cache.layers[1].values[2].any()


def test_nothing_to_do_is_fine() -> None:
    cache = _random_cache(2, torch.bfloat16)
    cache.copy_blocks([])
    cache.zero_blocks([])
