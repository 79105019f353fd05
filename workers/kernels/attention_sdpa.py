"""Attention through torch's fused scaled_dot_product_attention."""

import torch
import torch.nn.functional as F


def attend_decodes(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query of each of N sequences over keys padded to one length L.

    The query heads that share a key/value head pose as its query positions, so that each key is
    read once and not once for every query head.

    Args:
        query: [N, num_heads, D].
        keys: [N, L, num_kv_heads, D].
        values: Like keys; finite also where masked.
        mask: [N, 1, 1, L] in query's dtype: 0 where visible, else -infinity.
        scale: Factor on the dot products.

    Returns:
        [N, num_kv_heads, num_heads / num_kv_heads, D].
    """
    num_sequences, num_kv_heads, head_dim = keys.shape[0], keys.shape[2], keys.shape[3]
    return F.scaled_dot_product_attention(
        query.view(num_sequences, num_kv_heads, -1, head_dim),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )


def attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The last Q positions of one sequence over its L positions.

    Args:
        query: [Q, num_heads, D].
        keys: [L, num_kv_heads, D].
        values: Like keys.
        mask: [Q, L] in query's dtype: 0 where visible, else -infinity. None where Q is L and
            every query sees all up to itself.
        scale: Factor on the dot products.

    Returns:
        [Q, num_heads, D].
    """
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)
