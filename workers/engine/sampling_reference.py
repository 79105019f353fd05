"""Drawing tokens in plain torch: the reference, for any device."""

import torch

from workers.engine.sampling_noise import gumbel, key_words, row_key
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import Target

_DENSE_CHUNK = 2**18
"""Logits that one pass of noise is made for: few enough to stay in a core's cache."""
_SORTED_WIDTH = 1024
"""Likeliest tokens that are sorted first; nearly always they hold the whole nucleus."""
_LEAST_TEMPERATURE = 1e-30
"""Lower ones are the same to float32, down to zero, by which nothing can be divided."""


def draw_tokens(logits: torch.Tensor, targets: list[Target]) -> list[int]:
    """A token for each row of float32 [R, V] logits; -1 if none can be drawn from it.

    That is if it has NaN or infinity, or nothing but minus infinity.
    """
    highest, likeliest = logits.max(dim=-1)
    tokens: list[int] = likeliest.where(highest.isfinite(), -1).tolist()
    drawn = [
        row
        for row, (sequence, _) in enumerate(targets)
        if tokens[row] >= 0 and not sequence.group.request.params.is_greedy
    ]
    if drawn:
        ids = _draw(logits[drawn], [targets[row] for row in drawn])
        for row, token_id in zip(drawn, ids.tolist(), strict=True):
            tokens[row] = token_id
    return tokens


def _draw(logits: torch.Tensor, targets: list[Target]) -> torch.Tensor:
    """int64 [R] tokens for the rows of float32 [R, V] logits, all with a temperature.

    The logits are changed in place.
    """
    device = logits.device
    params = [sequence.group.request.params for sequence, _ in targets]
    words = key_words(
        [
            row_key(sequence.group.request.params.seed, index, len(sequence.token_ids))
            for sequence, index in targets
        ]
    )
    keys = torch.tensor(words, dtype=torch.int32, device=device)
    # The likeliest token's logit becomes zero, so that no temperature makes it overflow.
    logits -= logits.amax(dim=-1, keepdim=True)
    logits /= _column([max(p.temperature, _LEAST_TEMPERATURE) for p in params], device)
    result = torch.empty(len(params), dtype=torch.int64, device=device)
    sorts = [0 < p.top_k < logits.shape[-1] or p.top_p < 1.0 for p in params]
    for draw, wanted in (_draw_sorted, True), (_draw_unsorted, False):
        rows = [row for row, does in enumerate(sorts) if does is wanted]
        if rows:
            result[rows] = draw(logits[rows], keys[rows], [params[row] for row in rows])
    return result


def _draw_unsorted(
    logits: torch.Tensor, keys: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """Draw from all tokens that min_p leaves."""
    if any(p.min_p for p in params):
        logits = _cut(logits, _min_p_floor(params, logits.device))
    return _draw_from_all(logits, keys)


def _draw_sorted(
    logits: torch.Tensor, keys: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """Draw from the likeliest tokens that top_k, then top_p, then min_p leave."""
    vocabulary = logits.shape[-1]
    limits = [p.top_k for p in params if p.top_k < vocabulary]
    width = min(vocabulary, max(_SORTED_WIDTH, *limits, 0))
    values, ids = logits.topk(width, dim=-1)
    far = _rows_left_short(values, logits, params)
    if not far:
        return _draw_from_top(values, ids, logits, keys, params)
    # Only the rows that need it are sorted to their end, which takes many times as long.
    near = [row for row in range(len(params)) if row not in far]
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for rows, top in (near, (values[near], ids[near])), (far, logits[far].sort(descending=True)):
        if rows:
            chosen = [params[row] for row in rows]
            tokens[rows] = _draw_from_top(*top, logits[rows], keys[rows], chosen)
    return tokens


def _draw_from_top(
    values: torch.Tensor,
    ids: torch.Tensor,
    logits: torch.Tensor,
    keys: torch.Tensor,
    params: list[SamplingParams],
) -> torch.Tensor:
    """Draw from what top_k, top_p and min_p leave of the sorted `values` of tokens `ids`, [R, C].

    Each of them leaves all tokens down to some logit. Equal ones all stay or all go, since their
    order, which depends on the batch, must not matter.
    """
    floor = _top_floor(values, logits, params).maximum(_min_p_floor(params, logits.device))
    if values.shape[-1] < logits.shape[-1] and (values[:, -1:] >= floor).any():
        # Some that are as likely as the last one kept may not be among the sorted ones.
        return _draw_from_all(_cut(logits, floor), keys)
    best = (gumbel(ids.to(torch.int32), keys) + _cut(values, floor)).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, best).squeeze(-1)


def _draw_from_all(logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """int64 [R] tokens drawn from the softmax of float32 [R, V] logits."""
    vocabulary = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)[None, :]
    step = max(1, _DENSE_CHUNK // logits.shape[-1])
    parts = [slice(first, first + step) for first in range(0, len(logits), step)]
    return torch.cat([(gumbel(vocabulary, keys[p]) + logits[p]).argmax(dim=-1) for p in parts])


def _rows_left_short(
    values: torch.Tensor, logits: torch.Tensor, params: list[SamplingParams]
) -> list[int]:
    """The rows whose top_k or top_p goes further down than the sorted `values`."""
    width = values.shape[-1]
    if width == logits.shape[-1]:
        return []
    mass = (values.exp().sum(dim=-1) / logits.exp().sum(dim=-1)).tolist()
    return [
        row
        for row, (p, m) in enumerate(zip(params, mass, strict=True))
        if not 0 < p.top_k <= width and m < p.top_p
    ]


def _top_floor(
    values: torch.Tensor, logits: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """The least logit, [R, 1], that top_k, and top_p among those that top_k leaves, do not cut off.

    Args:
        values: [R, C], the largest of the logits in descending order.
        logits: [R, V].
        params: Of each row.
    """
    device, num_sorted = values.device, values.shape[-1]
    limits = _column([p.top_k or num_sorted for p in params], device)
    in_limit = torch.arange(num_sorted, device=device) < limits
    weights = values.exp() * in_limit
    reached = weights.cumsum(dim=-1)
    has_limit = torch.tensor([[0 < p.top_k <= num_sorted] for p in params], device=device)
    top_p = _column([p.top_p for p in params], device)
    wanted = top_p * reached[:, -1:].where(has_limit, logits.exp().sum(dim=-1, keepdim=True))
    is_left = in_limit & ((reached - weights < wanted) | (top_p == 1.0))
    return values.gather(-1, is_left.sum(dim=-1, keepdim=True) - 1)


def _min_p_floor(params: list[SamplingParams], device: torch.device) -> torch.Tensor:
    """The least logit, [R, 1], that is min_p times as likely as the likeliest, whose logit is 0."""
    return _column([p.min_p for p in params], device).log()


def _cut(logits: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Without the tokens below the row's floor."""
    return logits.masked_fill(logits < floor, -torch.inf)


def _column(numbers: list[float] | list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None]
