"""Access to keys and values in blocks."""

import torch


def write_rows(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Put rows [N, num_kv_heads, D] into slots int64 [N] of a cache [num_blocks, block_size, ...].

    Slot s is offset s % block_size of block s // block_size; no slot occurs twice.
    """
    cache.flatten(0, 1).index_copy_(0, slots, rows)


def gather_blocks(cache: torch.Tensor, block_ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy blocks int64 [N] of a cache [num_blocks, block_size, num_kv_heads, D] side by side.

    They go into the first N of `out`, shaped like the cache, and are returned as
    [N * block_size, num_kv_heads, D]. `out` is given because a fresh tensor of some megabytes
    costs more in page faults than the copy.
    """
    target = out[: block_ids.shape[0]]
    torch.index_select(cache, 0, block_ids, out=target)
    return target.flatten(0, 1)
