"""Access to keys and values in blocks."""

import torch

_INT8_MAX = 127.0


def write_rows(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Put rows [N, ...] into slots int64 [N] of a cache [num_blocks, block_size, ...].

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


def quantize_heads(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., D] as int8, and float32 scales [...]: each row's largest magnitude becomes 127."""
    exact = rows.float()
    largest = exact.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, _INT8_MAX / largest, 0)
    return (exact * inverse).round().to(torch.int8), (largest / _INT8_MAX).squeeze(-1)


def dequantize_heads(rows: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int8 rows [..., D] times float32 scales [...], in dtype."""
    return (rows * scales[..., None]).to(dtype)
