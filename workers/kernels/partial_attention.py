"""Attention over a part of a sequence's positions, and how parts become a whole, in plain torch."""

from typing import NamedTuple

import torch


class PartialAttention(NamedTuple):
    """What some queries get of some positions."""

    out: torch.Tensor
    """float32 [Q, num_heads, D]: softmax over these positions alone, times values; zeros where
    a query sees none of them."""
    log_sum_exp: torch.Tensor
    """float32 [Q, num_heads]: of the scores; minus infinity where a query sees none."""


def partial_attention(
    query: torch.Tensor,
    query_positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_positions: torch.Tensor,
    window: int | None,
    scale: float,
) -> PartialAttention:
    """Causal attention of queries of one sequence over any of its positions, in float32.

    Args:
        query: [Q, num_heads, D].
        query_positions: int64 [Q].
        keys: [L, num_kv_heads, D]; consecutive query heads share a key/value head. L may be 0.
        values: Like keys.
        key_positions: int64 [L], in any order.
        window: Each query sees this many latest positions, its own included; None for all.
        scale: Factor on the dot products.
    """
    num_queries, num_heads, head_dim = query.shape
    grouped = query.float().view(num_queries, keys.shape[1], -1, head_dim) * scale
    scores = torch.einsum("qkgd,lkd->qkgl", grouped, keys.float())
    visible = key_positions <= query_positions[:, None]
    if window is not None:
        visible &= key_positions > query_positions[:, None] - window
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    log_sum_exp = scores.logsumexp(dim=-1)
    weights = (scores - _number(log_sum_exp)[..., None]).exp()
    out = torch.einsum("qkgl,lkd->qkgd", weights, values.float())
    return PartialAttention(out.reshape(query.shape), log_sum_exp.view(num_queries, num_heads))


def merge_partials(out: torch.Tensor, log_sum_exp: torch.Tensor) -> torch.Tensor:
    """Attention over all positions, of that over each of N parts of them.

    Each part counts as much as its share of the softmax's denominator, which is the rule that
    joins split keys in Flash-Decoding (Dao et al., 2023).

    Args:
        out: float32 [N, R, num_heads, D], as in PartialAttention.
        log_sum_exp: float32 [N, R, num_heads].

    Returns:
        float32 [R, num_heads, D]; zeros where a query sees nothing at all.
    """
    largest = _number(log_sum_exp.amax(dim=0))
    weights = (log_sum_exp - largest).exp()
    total = weights.sum(dim=0)
    joined = (out * weights[..., None]).sum(dim=0)
    return joined / torch.where(total == 0, 1, total)[..., None]


def _number(log_sum_exp: torch.Tensor) -> torch.Tensor:
    """With 0 for minus infinity, from which nothing can be subtracted; NaN stays NaN."""
    return torch.where(log_sum_exp == float("-inf"), 0, log_sum_exp)
