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
    those without experts stay 0. Each rank of a dense group counts all rows of the group."""
    num_real: torch.Tensor
    """int64 [1]: rows of the step's batch that are not padding, and are counted."""
    part: int = 0
    """Which part of the batch's rows this rank computes, where ranks divide them."""

    def first_row(self, num_rows: int) -> int:
        """Which row of the batch is the first here, where ranks have num_rows each."""
        return self.part * num_rows

    @classmethod
    def allocate(cls, num_layers: int, num_experts: int, part: int = 0) -> Self:
        """Nothing counted yet."""
        return cls(
            torch.zeros(num_layers, num_experts, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
            part,
        )
