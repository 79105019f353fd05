"""Muon for matrices and AdamW for the rest, on float32 masters of bfloat16 parameters."""

from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0


class Optimizer:
    """Steps a bfloat16 model without losing updates that are smaller than its rounding.

    Muon (K. Jordan, 2024) reaches a given loss on hidden matrices in about half the tokens that
    AdamW needs; embeddings and norms are not matrices in its sense and stay with AdamW.
    """

    def __init__(self, model: nn.Module) -> None:
        self._params = list(model.parameters())
        self._masters = [p.detach().float().requires_grad_() for p in self._params]
        named = zip((name for name, _ in model.named_parameters()), self._masters, strict=True)
        hidden: list[Tensor] = []
        other: list[Tensor] = []
        for name, master in named:
            is_matrix = master.ndim == 2 and "embed" not in name
            (hidden if is_matrix else other).append(master)
        self._muon = torch.optim.Muon(
            hidden, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(other, betas=BETAS, weight_decay=0.0, fused=True)

    def step(self, learning_rate: float) -> float:
        """Apply the gradients and clear them; returns their norm before clipping."""
        for param, master in zip(self._params, self._masters, strict=True):
            if param.grad is not None:
                master.grad = param.grad.float()
            param.grad = None
        norm = nn.utils.clip_grad_norm_(self._masters, MAX_GRADIENT_NORM)
        for optimizer in (self._muon, self._adamw):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()  # type: ignore[no-untyped-call]
        self._write_back()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on."""
        return {
            "masters": [master.detach() for master in self._masters],
            "muon": self._muon.state_dict(),
            "adamw": self._adamw.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; sets the model's parameters too."""
        masters: list[Tensor] = state["masters"]
        with torch.no_grad():
            for master, saved in zip(self._masters, masters, strict=True):
                master.copy_(saved)
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for param, master in zip(self._params, self._masters, strict=True):
            param.copy_(master)
