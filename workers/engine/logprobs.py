"""Log-probabilities as clients ask for them."""

import torch

from workers.engine.request import TokenLogprob


def token_logprobs(logits: torch.Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of each row's token and of the `num_top` likeliest ones.

    Args:
        logits: float32 [R, V], before temperature and filters.
        token_ids: R tokens.
        num_top: Likeliest tokens to report, best first.
    """
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    own = (logits.gather(-1, chosen) - total).squeeze(-1).tolist()
    values, ids = logits.topk(min(num_top, logits.shape[-1]), dim=-1)
    tops = [
        list(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(ids.tolist(), (values - total).tolist(), strict=True)
    ]
    return [
        TokenLogprob(token_id, logprob, top)
        for token_id, logprob, top in zip(token_ids, own, tops, strict=True)
    ]
