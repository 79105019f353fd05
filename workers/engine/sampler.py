"""From logits to tokens, for a batch of requests that each have their own wishes."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from workers.engine.logits_rules import LogitsRules
from workers.engine.sampling_noise import row_key
from workers.engine.sampling_reference import draw_tokens
from workers.engine.sequence import Sequence, Target
from workers.kernels.cpu_sampling import CpuSampling, RowParams

_NOT_FINITE = "no token can be sampled: the logits are not finite"


class Draw(NamedTuple):
    """The outcome for one row."""

    token_id: int
    error: str = ""
    """Why no token could be drawn."""


class Sampler:
    """Draws one token per row. What it draws depends on (seed, position, logits) only.

    Of the tokens, top_k leaves the likeliest, top_p the likeliest of these that together have its
    share of their probability, and min_p those that are likely enough beside the likeliest. Each
    cuts at some logit: equal ones all stay or all go, since their order must not matter.
    """

    def __init__(self, eos_token_ids: tuple[int, ...], kernels: CpuSampling | None = None) -> None:
        """Where logits are on the CPU the kernels draw, if there are any; else torch does."""
        self._eos_token_ids = eos_token_ids
        self._kernels = kernels
        self._rows = RowParams(1)
        self._rules: WeakKeyDictionary[Sequence, LogitsRules] = WeakKeyDictionary()

    def sample(self, logits: torch.Tensor, targets: list[Target]) -> list[Draw]:
        """One token for each row of `logits`, float32 [R, V], contiguous.

        Rows of requests whose parameters say `changes_logits` are changed in place. A row that
        cannot be sampled, because it has NaN, every token is banned, or its parameters cannot be
        applied, gets an error.
        """
        kernels = self._kernels if logits.device.type == "cpu" else None
        errors = self._apply_rules(kernels, logits, targets)
        if kernels is None:
            tokens = draw_tokens(logits, targets)
        else:
            tokens = self._draw_by_kernels(kernels, logits, targets)
        draws = [Draw(token) if token >= 0 else Draw(0, _NOT_FINITE) for token in tokens]
        for row, error in errors.items():
            draws[row] = Draw(0, error)
        return draws

    def _apply_rules(
        self, kernels: CpuSampling | None, logits: torch.Tensor, targets: list[Target]
    ) -> dict[int, str]:
        """Change the rows as their requests wish; what went wrong, by row."""
        errors = {}
        for row, (sequence, _) in enumerate(targets):
            if not sequence.group.request.params.changes_logits:
                continue
            try:
                rules = self._rules_of(sequence, logits.device)
                rules.apply(logits[row], sequence, kernels)
            except Exception as error:  # whatever it is, it is this request's alone
                errors[row] = f"the sampling parameters cannot be applied: {error!r}"
        return errors

    def _rules_of(self, sequence: Sequence, device: torch.device) -> LogitsRules:
        rules = self._rules.get(sequence)
        if rules is None:
            rules = self._rules[sequence] = LogitsRules(sequence, self._eos_token_ids, device)
        return rules

    def _draw_by_kernels(
        self, kernels: CpuSampling, logits: torch.Tensor, targets: list[Target]
    ) -> list[int]:
        """See draw_tokens."""
        out = torch.empty(len(targets), dtype=torch.int64)
        is_greedy = all(s.group.request.params.temperature == 0.0 for s, _ in targets)
        rows = None if is_greedy else self._row_params(targets, logits.shape[1])
        kernels.sample(logits, rows, out)
        tokens: list[int] = out.tolist()
        return tokens

    def _row_params(self, targets: list[Target], vocabulary: int) -> RowParams:
        if self._rows.num_rows < len(targets):
            self._rows = RowParams(len(targets))
        rows = self._rows
        for row, (sequence, index) in enumerate(targets):
            p = sequence.group.request.params
            top_k = p.top_k if p.top_k < vocabulary else 0
            key = row_key(p.seed, index, len(sequence.token_ids))
            rows.set(row, p.temperature, p.top_p, p.min_p, top_k, key)
        return rows
