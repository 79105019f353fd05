"""What a request's parameters do to its logits before a token is drawn."""

import numpy as np
import torch

from workers.engine.sequence import Sequence


class LogitsRules:
    """Penalties, bias, allowed and banned tokens of one sequence.

    What does not change from step to step is kept; of what does, only new tokens are looked at.
    The sequence itself is not held, so that it may be dropped.
    """

    def __init__(
        self, sequence: Sequence, eos_token_ids: tuple[int, ...], device: torch.device
    ) -> None:
        """For logits on `device`. Raises what torch raises if a token id is no integer."""
        params = sequence.group.request.params
        ends = [*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)]
        self._params = params
        self._seen = _TokenCounts(0)
        self._output = _TokenCounts(sequence.num_prompt)
        self._bias_ids = torch.tensor([*params.logit_bias], dtype=torch.int64, device=device)
        self._bias = torch.tensor([*params.logit_bias.values()], dtype=torch.float32, device=device)
        self._allowed = torch.tensor(params.allowed_token_ids, dtype=torch.int64, device=device)
        self._banned = torch.tensor(params.banned_token_ids, dtype=torch.int64, device=device)
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device)

    def apply(self, logits: torch.Tensor, sequence: Sequence) -> None:
        """Change the row for the next token of the same sequence, float32 [V], in place.

        Raises IndexError for a token beyond it.
        """
        params = self._params
        if params.repetition_penalty != 1.0:
            self._penalize_repetition(logits, sequence.token_ids)
        if params.frequency_penalty or params.presence_penalty:
            self._penalize_counts(logits, sequence.token_ids)
        if len(self._bias):
            logits[self._bias_ids] += self._bias
        if len(self._allowed):
            kept = logits[self._allowed]
            logits.fill_(-torch.inf)
            logits[self._allowed] = kept
        if len(self._banned):
            logits[self._banned] = -torch.inf
        if sequence.num_output < params.min_tokens:
            logits[self._ends] = -torch.inf

    def _penalize_repetition(self, logits: torch.Tensor, token_ids: list[int]) -> None:
        """CTRL's rule (Keskar et al. 2019): seen tokens become less likely, whatever the sign."""
        seen, _ = self._seen.tensors(token_ids, logits.device)
        values, penalty = logits[seen], self._params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)

    def _penalize_counts(self, logits: torch.Tensor, token_ids: list[int]) -> None:
        ids, counts = self._output.tensors(token_ids, logits.device)
        logits[ids] -= self._params.frequency_penalty * counts + self._params.presence_penalty


class _TokenCounts:
    """How often each token comes in a growing list, from some position on."""

    def __init__(self, start: int) -> None:
        self._num_seen = start
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def tensors(
        self, token_ids: list[int], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct token ids, int64 [N], and their counts, float32 [N]."""
        for token_id in token_ids[self._num_seen :]:
            self._count(token_id)
        self._num_seen = len(token_ids)
        size = len(self._places)
        ids, counts = self._ids[:size], self._counts[:size]
        return torch.from_numpy(ids).to(device), torch.from_numpy(counts).to(device)

    def _count(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token_id
        self._counts[place] += 1
