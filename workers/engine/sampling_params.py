"""What a request asks of the sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.errors import invalid

_LEAST_FLOAT32 = 2.0**-149
"""What is above 0 on the wire; anything less would be 0 to the sampler."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn and when a sample ends.

    Raises RequestError (INVALID_ARGUMENT) naming the field if a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    seed: int = 0
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    """Likeliest tokens to report beside each generated one; None reports nothing."""
    prompt_top_logprobs: int | None = None
    changes_logits: bool = field(init=False, repr=False)
    """Whether anything but temperature and filters may change what is likely."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_k", self.top_k, 0, 2**31)
        _check("top_p", self.top_p, _LEAST_FLOAT32, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 1e-3, 10.0)
        _check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check("seed", self.seed, 0, 2**64 - 1)
        _check("n", self.n, 1, 128)
        _check("min_tokens", self.min_tokens, 0, 2**31)
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 1, 2**31)
        if self.top_logprobs is not None:
            _check("top_logprobs", self.top_logprobs, 0, 20)
        if self.prompt_top_logprobs is not None:
            _check("prompt_top_logprobs", self.prompt_top_logprobs, 0, 20)
        for bias in self.logit_bias.values():
            _check("logit_bias", bias, -100.0, 100.0)
        changes = (
            self.repetition_penalty != 1.0
            or self.frequency_penalty
            or self.presence_penalty
            or self.logit_bias
            or self.allowed_token_ids
            or self.banned_token_ids
            or self.min_tokens
        )
        object.__setattr__(self, "changes_logits", bool(changes))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise invalid(name, value, f"a number in [{low}, {high}]")
