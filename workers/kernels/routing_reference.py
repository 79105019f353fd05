"""Routing of rows to experts in plain torch."""

import torch


def route(
    logits: torch.Tensor,
    num_real: torch.Tensor,
    copies: torch.Tensor,
    places: torch.Tensor,
    load: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    *,
    renormalises: bool,
    first_row: int = 0,
) -> None:
    """Send each row to the experts with the largest logits, of equal ones the first.

    A row's weights are the softmax over all experts, as in Qwen's and Mistral's models. An expert
    that several slots hold is taken from each of them in turn, by the row's number. Rows with a
    logit that is not finite have weights that are NaN.

    Args:
        logits: float32 [T, n].
        num_real: int64 [1], on the CPU: rows of the batch from this one on are padding, which goes
            nowhere.
        copies: int32 [n]: how many slots hold an expert.
        places: int32 [n, C]: which ones, in the first copies[e] columns.
        load: int64 [n], on the CPU: rows that went to each expert so far; added to.
        slots: int32 [T, k]; takes the slots of each row's experts, the likeliest first; -1 in
            padding.
        weights: float32 [T, k]; takes their weights; 0 in padding.
        renormalises: Whether weights are divided by their sum over the row's experts.
        first_row: Which row of the batch is the first of these.
    """
    top_k, real = slots.shape[1], min(max(int(num_real) - first_row, 0), len(logits))
    slots[real:] = -1
    weights[real:] = 0
    rows = logits[:real]
    is_finite = rows.isfinite().all(dim=-1, keepdim=True)
    rows = torch.where(is_finite, rows, 0.0)
    experts = rows.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    found = rows.softmax(dim=-1).gather(1, experts)
    if renormalises:
        found /= found.sum(dim=-1, keepdim=True)
    weights[:real] = torch.where(is_finite, found, torch.nan)
    load += experts.flatten().bincount(minlength=len(load)).to(load.device)
    numbers = torch.arange(real, device=logits.device).unsqueeze(1)
    slots[:real] = places[experts, numbers % copies[experts]]
