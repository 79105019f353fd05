"""Which rows of a step a sequence rank computes."""

import torch

from workers.engine.step_inputs import bucket
from workers.models.causal_lm import CausalLM
from workers.parallel.group import Group


class RowShare:
    """The rows of a padded batch in as many equal runs as there are ranks, one for each."""

    def __init__(self, group: Group, model: CausalLM, max_num_tokens: int) -> None:
        """For steps of up to max_num_tokens tokens."""
        self._group = group
        self.max_rows = bucket(-(-max_num_tokens // group.size))
        """Of one rank."""
        num_rows = group.size * self.max_rows if group.size > 1 else 0
        self._whole = torch.empty(
            num_rows, model.shape.hidden_size, dtype=model.dtype, device=model.device
        )

    @property
    def num_parts(self) -> int:
        """Of which there must be a multiple in rows."""
        return self._group.size

    def own(self, num_rows: int) -> slice:
        """This rank's rows of a batch of num_rows, padding included."""
        count = num_rows // self._group.size
        return slice(self._group.rank * count, (self._group.rank + 1) * count)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """All rows of the batch, of all ranks' own [R, hidden_size]; valid until the next call."""
        size = self._group.size
        if size == 1:
            return rows
        whole = self._whole[: size * len(rows)]
        self._group.all_gather(rows, whole.view(size, *rows.shape))
        return whole
