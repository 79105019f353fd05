"""How far one model's next-token distributions are from another's."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(slots=True)
class Divergence:
    """Sums over the positions seen so far, of an original model and a changed one."""

    positions: int = 0
    predictions: int = 0
    """Positions whose next token is known."""
    kl_sum: float = 0.0
    """Nats of the changed distribution from the original (Kullback and Leibler, 1951)."""
    logit_sum: float = 0.0
    """Of each position's mean absolute difference of logits."""
    logit_max: float = 0.0
    same_argmax: int = 0
    original_loss: float = 0.0
    """Nats of the tokens that follow."""
    changed_loss: float = 0.0

    def add(self, original: torch.Tensor, changed: torch.Tensor, following: torch.Tensor) -> None:
        """Take in R positions.

        Args:
            original: Logits float32 [R, vocab_size].
            changed: The other model's.
            following: int64 [up to R], the tokens after the first positions.
        """
        count = len(following)
        first, second = original.log_softmax(-1), changed.log_softmax(-1)
        difference = (changed - original).abs()
        self.positions += len(original)
        self.predictions += count
        self.kl_sum += float(F.kl_div(second, first, reduction="sum", log_target=True))
        self.logit_sum += float(difference.mean(-1).sum())
        self.logit_max = max(self.logit_max, float(difference.max()))
        self.same_argmax += int((original.argmax(-1) == changed.argmax(-1)).sum())
        self.original_loss += float(F.nll_loss(first[:count], following, reduction="sum"))
        self.changed_loss += float(F.nll_loss(second[:count], following, reduction="sum"))

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the original and the changed model."""
        losses = (self.original_loss, self.changed_loss)
        original, changed = (math.exp(loss / self.predictions) for loss in losses)
        return original, changed

    @property
    def perplexity_change(self) -> float:
        """Percent by which the changed model's perplexity is higher."""
        original, changed = self.perplexities
        return 100 * (changed / original - 1)
