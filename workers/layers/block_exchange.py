"""Copies and clears KV blocks that are divided among sequence ranks."""

from collections.abc import Callable, Iterable

import torch

from workers.layers.block_share import BlockShare
from workers.layers.kv_cache import KVCache
from workers.parallel.group import Group


def copy_blocks(cache: KVCache, pairs: list[tuple[int, int]], group: Group) -> None:
    """Copy each (source, destination) block in all layers, whichever ranks hold them.

    All ranks of the group call it with the same pairs; no destination is also a source. What
    travels is once the bytes of the blocks copied, in one exchange.
    """
    if group.size == 1:
        cache.copy_blocks(pairs)
    else:
        exchange_blocks(pairs, group, cache.read_blocks, cache.write_blocks)


def exchange_blocks(
    pairs: list[tuple[int, int]],
    group: Group,
    read: Callable[[list[int]], torch.Tensor],
    write: Callable[[list[int], torch.Tensor], None],
) -> None:
    """Bring each source block, or slot, to its destination, in one exchange.

    All ranks of the group call it with the same (source, destination) pairs. Those that a rank
    holds are `read` and written with all their bytes, bfloat16 [N, W], by where they lie with it.
    """
    if not pairs:
        return
    share = BlockShare(group.rank, group.size)
    sources: list[list[int]] = [[] for _ in range(group.size)]
    destinations: list[list[int]] = [[] for _ in range(group.size)]
    for source, destination in pairs:
        if share.owner(source) == share.rank:
            sources[share.owner(destination)].append(share.local(source))
        if share.owner(destination) == share.rank:
            destinations[share.owner(source)].append(share.local(destination))
    sent = read(_flat(sources))
    targets = _flat(destinations)
    received = sent.new_empty(len(targets), sent.shape[1])
    group.all_to_all(sent, [*map(len, sources)], received, [*map(len, destinations)])
    write(targets, received)


def zero_blocks(cache: KVCache, block_ids: Iterable[int], share: BlockShare) -> None:
    """Clear those of some blocks that a rank holds; see KVCache.zero_blocks."""
    cache.zero_blocks([share.local(block) for block in block_ids if share.holds(block)])


def _flat(parts: list[list[int]]) -> list[int]:
    return [number for part in parts for number in part]
