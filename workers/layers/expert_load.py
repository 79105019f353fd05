"""What experts had to do."""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Rows that were routed to each expert, counted while steps run. Both tensors are on the CPU
    and do not move."""

    rows: torch.Tensor
    """int64 [layers, num_experts], only ever added to; the layers are those of this rank, and
    those without experts stay 0. Rows of all ranks of a dense group are counted on each of them."""
    num_real: torch.Tensor
    """int64 [1]: rows of the step that are not padding, and are counted."""

    @classmethod
    def allocate(cls, num_layers: int, num_experts: int) -> Self:
        """Nothing counted yet."""
        return cls(
            torch.zeros(num_layers, num_experts, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
        )
