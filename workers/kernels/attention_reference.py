"""Attention in plain torch: what the fast kernels are compared with."""

import torch


def attention_reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, scale: float
) -> torch.Tensor:
    """Causal attention of one sequence's last Q positions over its L positions.

    Args:
        query: [Q, num_heads, D], at positions L - Q up to L - 1.
        keys: [L, num_kv_heads, D]; consecutive query heads share a key/value head.
        values: Like keys.
        window: Each query sees this many latest positions, its own included; None for all.
        scale: Factor on the dot products.

    Returns:
        [Q, num_heads, D] in query's dtype; products and softmax are float32.
    """
    group = query.shape[1] // keys.shape[1]
    spread_keys = keys.float().repeat_interleave(group, dim=1)
    spread_values = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,lhd->hql", query.float() * scale, spread_keys)
    visible = causal_mask(query.shape[0], keys.shape[0], window, query.device)
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hql,lhd->qhd", probabilities, spread_values).to(query.dtype)


def causal_mask(
    num_queries: int, length: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Which positions the last queries of a sequence see: bool [num_queries, length]."""
    positions = torch.arange(length, device=device)
    query_positions = positions[length - num_queries :, None]
    visible = positions <= query_positions
    if window is not None:
        visible &= positions > query_positions - window
    return visible
