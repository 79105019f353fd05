"""Copies and clears KV blocks that are divided among sequence ranks."""

from collections.abc import Iterable

import torch

from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import KVCache
from workers.parallel.group import Group


def copy_blocks(cache: KVCache, pairs: list[tuple[int, int]], group: Group) -> None:
    """Copy each (source, destination) block in all layers, whichever ranks hold them.

    All ranks of the group call it with the same pairs; no destination is also a source. What
    travels is once the bytes of the blocks copied, in one exchange.
    """
    if not pairs:
        return
    if group.size == 1:
        cache.copy_blocks(pairs)
        return
    share = BlockShare(group.rank, group.size)
    sources: list[list[int]] = [[] for _ in range(group.size)]
    destinations: list[list[int]] = [[] for _ in range(group.size)]
    for source, destination in pairs:
        if share.owner(source) == share.rank:
            sources[share.owner(destination)].append(share.local(source))
        if share.owner(destination) == share.rank:
            destinations[share.owner(source)].append(share.local(destination))
    stores = [_as_words(store) for store in cache.stores()]
    indices = _flat(sources, stores[0].device)
    sent = torch.cat([store[indices] for store in stores], dim=1)
    targets = _flat(destinations, stores[0].device)
    received = sent.new_empty(len(targets), sent.shape[1])
    group.all_to_all(sent, [*map(len, sources)], received, [*map(len, destinations)])
    parts = received.split_with_sizes([store.shape[1] for store in stores], dim=1)
    for store, part in zip(stores, parts, strict=True):
        store[targets] = part


def zero_blocks(cache: KVCache, block_ids: Iterable[int], share: BlockShare) -> None:
    """Clear those of some blocks that a rank holds; see KVCache.zero_blocks."""
    cache.zero_blocks([share.local(block) for block in block_ids if share.holds(block)])


def _as_words(store: torch.Tensor) -> torch.Tensor:
    """A store's blocks [num_blocks, W], in a type that groups exchange and all stores divide into.

    Heads have an even number of elements, so a block of int8 has an even number of bytes.
    """
    return store.flatten(1).view(torch.bfloat16)


def _flat(parts: list[list[int]], device: torch.device) -> torch.Tensor:
    numbers = [number for part in parts for number in part]
    return torch.tensor(numbers, dtype=torch.int64, device=device)
