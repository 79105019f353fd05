"""From logits to tokens, for a batch of requests that each have their own wishes."""

from typing import NamedTuple

import torch

from workers.engine.logits_rules import apply_rules, needs_rules
from workers.engine.sampling_noise import gumbel, row_key
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import Sequence

Target = tuple[Sequence, int]
"""(sequence, index of the sample that the token is for)"""

_DENSE_CHUNK = 2**18
"""Logits that one pass of noise is made for: few enough to stay in a core's cache."""
_SORTED_WIDTH = 1024
"""Likeliest tokens that are sorted first; nearly always they hold the whole nucleus."""


class Draw(NamedTuple):
    """The outcome for one row."""

    token_id: int
    error: str = ""
    """Why no token could be drawn."""


class Sampler:
    """Draws one token per row. What it draws depends on (seed, position, logits) only."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos_token_ids = eos_token_ids

    def sample(self, logits: torch.Tensor, targets: list[Target]) -> list[Draw]:
        """One token for each row of `logits`, float32 [R, V], which may be changed in place.

        A row that cannot be sampled, because it has NaN or every token is banned, gets an error.
        """
        for row, (sequence, _) in enumerate(targets):
            if needs_rules(sequence):
                apply_rules(logits[row], sequence, self._eos_token_ids)
        highest, tokens = logits.max(dim=-1)
        is_sane = highest.isfinite().tolist()
        chosen = tokens.tolist()
        drawn = [
            row
            for row, (sequence, _) in enumerate(targets)
            if is_sane[row] and not sequence.group.request.params.is_greedy
        ]
        if drawn:
            ids = _draw(logits[drawn], [targets[row] for row in drawn])
            for row, token_id in zip(drawn, ids.tolist(), strict=True):
                chosen[row] = token_id
        return [
            Draw(token_id)
            if sane
            else Draw(0, "no token can be sampled: the logits are not finite")
            for token_id, sane in zip(chosen, is_sane, strict=True)
        ]


def _draw(logits: torch.Tensor, targets: list[Target]) -> torch.Tensor:
    """int64 [R] tokens for the rows of float32 [R, V] logits, all with a temperature."""
    device = logits.device
    params = [sequence.group.request.params for sequence, _ in targets]
    words = [
        row_key(sequence.group.request.params.seed, index, len(sequence.token_ids))
        for sequence, index in targets
    ]
    keys = torch.tensor(words, dtype=torch.int32, device=device)
    logits = logits / _column([p.temperature for p in params], device)
    result = torch.empty(len(params), dtype=torch.int64, device=device)
    truncated = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1.0]
    whole = [row for row, p in enumerate(params) if not (p.top_k or p.top_p < 1.0)]
    if truncated:
        chosen = [params[row] for row in truncated]
        result[truncated] = _draw_truncated(logits[truncated], keys[truncated], chosen)
    step = max(1, _DENSE_CHUNK // logits.shape[-1])
    for first in range(0, len(whole), step):
        rows = whole[first : first + step]
        result[rows] = _draw_whole(logits[rows], keys[rows], [params[row] for row in rows])
    return result


def _draw_whole(
    logits: torch.Tensor, keys: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """Draw from all tokens that min_p leaves."""
    if any(p.min_p for p in params):
        logits = _mask_min_p(logits, params)
    vocabulary = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    return (gumbel(vocabulary[None, :], keys) + logits).argmax(dim=-1)


def _draw_truncated(
    logits: torch.Tensor, keys: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """Draw from the likeliest tokens that top_k, then top_p, then min_p leave."""
    vocabulary = logits.shape[-1]
    limits = [p.top_k or vocabulary for p in params]
    width = min(vocabulary, max(_SORTED_WIDTH, *(k for k in limits if k < vocabulary), 1))
    values, ids = logits.topk(width, dim=-1)
    if width < vocabulary and not _holds_nucleus(values, logits, params):
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(values.shape[-1], device=logits.device)
    values = values.masked_fill(ranks >= _column(limits, logits.device), -torch.inf)
    values = _mask_top_p(values, logits, params)
    values = _mask_min_p(values, params)
    best = (gumbel(ids.to(torch.int32), keys) + values).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, best).squeeze(-1)


def _holds_nucleus(
    values: torch.Tensor, logits: torch.Tensor, params: list[SamplingParams]
) -> bool:
    """Whether the sorted `values` reach as far down as each row's top_k or top_p does."""
    mass = (values.logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp().tolist()
    width = values.shape[-1]
    return all(0 < p.top_k <= width or m >= p.top_p for p, m in zip(params, mass, strict=True))


def _mask_top_p(
    values: torch.Tensor, logits: torch.Tensor, params: list[SamplingParams]
) -> torch.Tensor:
    """Keep of descending values [R, C] the fewest whose probability reaches top_p.

    Probabilities are among the tokens that top_k leaves, or among all `logits` [R, V] without one.
    """
    if all(p.top_p == 1.0 for p in params):
        return values
    has_top_k = torch.tensor([[p.top_k > 0] for p in params], device=values.device)
    total = torch.where(
        has_top_k, values.logsumexp(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
    )
    probabilities = (values - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = _column([p.top_p for p in params], values.device)
    return values.masked_fill((before >= top_p) & (top_p < 1.0), -torch.inf)


def _mask_min_p(values: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Keep of values [R, C] those at least min_p times as likely as the likeliest."""
    if all(p.min_p == 0.0 for p in params):
        return values
    floor = (
        values.amax(dim=-1, keepdim=True) + _column([p.min_p for p in params], values.device).log()
    )
    return values.masked_fill(values < floor, -torch.inf)


def _column(numbers: list[float] | list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None]
