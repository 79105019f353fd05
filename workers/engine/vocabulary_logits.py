"""Logits over the whole vocabulary, of which each rank of the last stage has some columns."""

from math import prod

import torch

from workers.engine.step_inputs import bucket
from workers.models.causal_lm import CausalLM
from workers.parallel.group import Group


class VocabularyLogits:
    """Computes logits, and gathers them where they are divided. Its memory is used again."""

    def __init__(self, model: CausalLM, dense: Group) -> None:
        """`dense` are the ranks that divide the vocabulary."""
        self._model = model
        self._dense = dense
        self._num_columns = -(-model.config.vocab_size // dense.size)
        self._whole = torch.empty(0, model.config.vocab_size, device=model.device)
        # This rank's own first; not initialised, as padding is thrown away.
        self._parts = torch.empty(self._shape(0), device=model.device)

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [R, vocab_size] of hidden states [R, hidden_size], on the group's first rank.

        All of its ranks call it; elsewhere what it returns is empty. Valid until the next call;
        after an exchange that failed it holds nothing of use (see Group).
        """
        num_rows = len(hidden)
        if self._dense.rank == 0 and num_rows > len(self._whole):
            self._whole = self._whole.new_empty(bucket(num_rows), self._whole.shape[1])
        whole = self._whole[:num_rows]
        if self._dense.size == 1:
            return self._model.logits(hidden, whole)
        parts = self._gathered(hidden)
        if self._dense.rank == 0:
            for index, part in enumerate(parts):
                first = index * self._num_columns
                columns = whole[:, first : first + self._num_columns]
                columns.copy_(part[:, : columns.shape[1]])
        return whole

    def _gathered(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each rank's columns, [ranks, R, columns], padded where a rank has fewer."""
        num_rows, num_own = len(hidden), self._model.shape.num_vocab
        if num_rows > self._parts.shape[1]:
            self._parts = self._parts.new_empty(self._shape(bucket(num_rows)))
        shape = self._shape(num_rows)
        memory = self._parts.view(-1)[: prod(shape)].view(shape)
        own, parts = memory[0], memory[1:]
        if num_own == self._num_columns:
            self._model.logits(hidden, own)
        elif num_own:
            own[:, :num_own] = self._model.logits(hidden, own.new_empty(num_rows, num_own))
        self._dense.all_gather(own, parts)
        return parts

    def _shape(self, num_rows: int) -> tuple[int, int, int]:
        """Of this rank's columns, and then all ranks', of so many rows."""
        return 1 + self._dense.size, num_rows, self._num_columns
