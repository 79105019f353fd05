"""What a request's parameters do to its logits before a token is drawn."""

import torch

from workers.engine.sequence import Sequence


def needs_rules(sequence: Sequence) -> bool:
    """Whether `apply_rules` would change anything for the sequence's next token."""
    params = sequence.group.request.params
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias
        or params.allowed_token_ids
        or params.banned_token_ids
        or sequence.num_output < params.min_tokens
    )


def apply_rules(logits: torch.Tensor, sequence: Sequence, eos_token_ids: tuple[int, ...]) -> None:
    """Apply penalties, bias, allowed and banned tokens in place to one row, float32 [V]."""
    params = sequence.group.request.params
    if params.repetition_penalty != 1.0:
        _repetition_penalty(logits, sequence, params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        _count_penalties(logits, sequence, params.frequency_penalty, params.presence_penalty)
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if params.allowed_token_ids:
        allowed = list(params.allowed_token_ids)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    banned = [*params.banned_token_ids]
    if sequence.num_output < params.min_tokens:
        banned += [*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)]
    if banned:
        logits[banned] = -torch.inf


def _repetition_penalty(logits: torch.Tensor, sequence: Sequence, penalty: float) -> None:
    """CTRL's rule (Keskar et al. 2019): seen tokens become less likely, whatever the sign."""
    seen = torch.tensor(list(set(sequence.token_ids)), device=logits.device)
    values = logits[seen]
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _count_penalties(
    logits: torch.Tensor, sequence: Sequence, frequency: float, presence: float
) -> None:
    counts = sequence.count_outputs()
    if counts:
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[ids] -= frequency * times + presence
