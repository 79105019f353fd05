"""What a request's parameters do to its logits before a token is drawn."""

import numpy as np
import torch

from workers.engine.sequence import Sequence
from workers.kernels.cpu_sampling import CpuSampling, Penalties

_NO_PENALTIES = Penalties(repetition=1.0, frequency=0.0, presence=0.0)


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

    def apply(
        self, logits: torch.Tensor, sequence: Sequence, kernels: CpuSampling | None = None
    ) -> None:
        """Change the row for the next token of the same sequence, float32 [V], in place.

        Kernels, for logits on the CPU, save most of the time. Raises IndexError for a token of the
        request's parameters beyond the row.
        """
        params = self._params
        penalties = Penalties(
            params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        )
        if penalties != _NO_PENALTIES:
            seen, _ = self._seen.tensors(sequence.token_ids, logits.device)
            output, counts = self._output.tensors(sequence.token_ids, logits.device)
            penalize = _penalize if kernels is None else kernels.penalize
            penalize(logits, seen, output, counts, penalties)
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


def _penalize(
    logits: torch.Tensor,
    seen: torch.Tensor,
    output: torch.Tensor,
    counts: torch.Tensor,
    penalties: Penalties,
) -> None:
    """See CpuSampling.penalize."""
    values = logits[seen]
    logits[seen] = torch.where(
        values > 0, values / penalties.repetition, values * penalties.repetition
    )
    logits[output] -= penalties.frequency * counts + penalties.presence


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
