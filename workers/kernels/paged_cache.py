"""Access to keys and values in blocks."""

import torch


def write_rows(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Put rows [N, num_kv_heads, D] into slots int64 [N] of a cache [num_blocks, block_size, ...].

    Slot s is offset s % block_size of block s // block_size; no slot occurs twice.
    """
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, rows)


def gather_blocks(cache: torch.Tensor, block_ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy blocks int64 [N] side by side into `out` and return it as [N * block_size, heads, D].

    `out` is flat and of the cache's dtype, with at least as many elements as the blocks. It is
    given because a fresh tensor of some megabytes costs more in page faults than the copy.
    """
    flat = cache.view(cache.shape[0], -1)
    target = out[: len(block_ids) * flat.shape[1]].view(len(block_ids), -1)
    torch.index_select(flat, 0, block_ids, out=target)
    return target.view(-1, *cache.shape[2:])
