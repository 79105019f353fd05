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
    rotated = _rotated(qkv[:num_rows], shape, rotation, head_norm)
    query, key = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :]
    return WrittenHeads(
        query, *write_tokens(key, qkv[:num_rows, -shape.num_kv_heads :], cache, slots)
    )


def rotate_heads(
    qkv: torch.Tensor, shape: AttentionShape, rotation: Rotation, head_norm: HeadNorm | None
) -> torch.Tensor:
    """All heads of qkv, those of queries and keys normalised and rotated; shaped like qkv.

    Arguments are those of AttentionPlan.forward.
    """
    rotated = _rotated(qkv, shape, rotation, head_norm)
    return torch.cat((rotated, qkv[:, -shape.num_kv_heads :]), dim=1)


def write_tokens(
    key: torch.Tensor, value: torch.Tensor, cache: LayerCache, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put keys and values [N, num_kv_heads, head_dim] into slots int64 [N].

    They are returned as the cache gives them back.
    """
    return (
        _write(key, cache.keys, cache.key_scales, slots),
        _write(value, cache.values, cache.value_scales, slots),
    )


def _rotated(
    qkv: torch.Tensor, shape: AttentionShape, rotation: Rotation, head_norm: HeadNorm | None
) -> torch.Tensor:
    """The heads of queries and keys, [N, num_heads + num_kv_heads, head_dim]."""
    num_rows = qkv.shape[0]
    rotated = qkv[:, : shape.num_heads + shape.num_kv_heads]
    if head_norm is not None:
        rotated = normalise(rotated, head_norm.weights, head_norm.eps)
    cos, sin = rotation.table[rotation.positions[:num_rows]][:, None].chunk(2, dim=-1)
    return rotate(rotated, cos, sin)


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
