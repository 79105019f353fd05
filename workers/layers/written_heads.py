"""What the backends in plain torch do before they attend."""

from typing import NamedTuple

import torch

from workers.kernels.paged_cache import dequantize_heads, quantize_heads, write_rows
from workers.kernels.rms_norm import head_norm as normalise
from workers.kernels.rotary import rotate
from workers.layers.attention import AttentionShape, HeadNorm
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation


class WrittenHeads(NamedTuple):
    """One step's heads as attention sees them."""

    query: torch.Tensor
    """[N, num_heads, head_dim]"""
    key: torch.Tensor
    """[N, num_kv_heads, head_dim], as the cache gives it back."""
    value: torch.Tensor
    """Like key."""


def write_heads(
    qkv: torch.Tensor,
    shape: AttentionShape,
    rotation: Rotation,
    head_norm: HeadNorm | None,
    cache: LayerCache,
    slots: torch.Tensor,
) -> WrittenHeads:
    """Normalise and rotate the heads of the first N rows, and put keys and values into slots.

    Arguments are those of AttentionPlan.forward; `slots` is int64 [N].
    """
    num_rows = slots.shape[0]
    num_rotated = shape.num_heads + shape.num_kv_heads
    rotated, value = qkv[:num_rows, :num_rotated], qkv[:num_rows, num_rotated:]
    if head_norm is not None:
        rotated = normalise(rotated, head_norm.weights, head_norm.eps)
    cos, sin = rotation.table[rotation.positions[:num_rows]][:, None].chunk(2, dim=-1)
    rotated = rotate(rotated, cos, sin)
    query, key = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :]
    return WrittenHeads(
        query,
        _write(key, cache.keys, cache.key_scales, slots),
        _write(value, cache.values, cache.value_scales, slots),
    )


def _write(
    rows: torch.Tensor, store: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor
) -> torch.Tensor:
    if scales is None:
        write_rows(store, rows, slots)
        return rows
    quantized, row_scales = quantize_heads(rows)
    write_rows(store, quantized, slots)
    write_rows(scales, row_scales, slots)
    return dequantize_heads(quantized, row_scales, rows.dtype)
