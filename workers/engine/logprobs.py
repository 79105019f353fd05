"""Log-probabilities as clients ask for them."""

import torch

from workers.engine.request import TokenLogprob
from workers.kernels.cpu_sampling import CpuSampling


def token_logprobs(
    logits: torch.Tensor,
    token_ids: list[int],
    num_top: int,
    kernels: CpuSampling | None = None,
) -> list[TokenLogprob]:
    """The log-probability of each row's token and of the `num_top` likeliest ones.

    Args:
        logits: float32 [R, V], before temperature and filters.
        token_ids: R tokens.
        num_top: Likeliest tokens to report, best first.
        kernels: Compute it, if there are any, where logits are on the CPU.
    """
    num_top = min(num_top, logits.shape[-1])
    if kernels is not None and logits.device.type == "cpu":
        own, ids, values = _by_kernels(kernels, logits, token_ids, num_top)
    else:
        own, ids, values = _by_torch(logits, token_ids, num_top)
    tops = [
        list(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return [
        TokenLogprob(token_id, logprob, top)
        for token_id, logprob, top in zip(token_ids, own.tolist(), tops, strict=True)
    ]


_Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Log-probabilities [R] of the tokens; ids and log-probabilities [R, C] of the likeliest."""


def _by_kernels(
    kernels: CpuSampling, logits: torch.Tensor, token_ids: list[int], num_top: int
) -> _Found:
    own = torch.empty(len(token_ids))
    ids = torch.empty(len(token_ids), num_top, dtype=torch.int64)
    values = torch.empty(len(token_ids), num_top)
    kernels.logprobs(logits, torch.tensor(token_ids), own, ids, values)
    return own, ids, values


def _by_torch(logits: torch.Tensor, token_ids: list[int], num_top: int) -> _Found:
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    own = (logits.gather(-1, chosen) - total).squeeze(-1)
    values, ids = logits.topk(num_top, dim=-1)
    return own, ids, values - total
